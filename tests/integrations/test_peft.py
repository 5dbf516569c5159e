"""LoRA of the package peft beside whole weights that are compressed."""

import pytest

torch = pytest.importorskip("torch")

from test_optim import equal, weights  # noqa: E402
from tiny_models import (  # noqa: E402
    compressed_names,
    language_loss,
    llama,
    other_names,
    same_run,
    saved_and_loaded,
    sentences,
)

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")

from lowrank.optim import LowRank, select  # noqa: E402

# peft 0.21 asks transformers 5.23 for an attribute by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

FACTORS_PER_LAYER = 4  # A and B of two projections


def adapted(base=None, **options):
    """LoRA for the attention, whole weights for one more layer, the rest frozen."""
    usual = {
        "r": 4,
        "target_modules": ["q_proj", "v_proj"],
        "modules_to_save": ["down_proj", "lm_head"],
    }
    torch.manual_seed(0)
    return peft.get_peft_model(base or llama(), peft.LoraConfig(**{**usual, **options}))


def unfrozen():
    """LoRA for the attention, and weights of the base model trained as they are."""
    model = adapted(modules_to_save=None)
    for name, p in model.named_parameters():
        if "up_proj" in name or "k_proj" in name or "q_proj.base_layer" in name:
            p.requires_grad_(True)
    return model


def optimizer_of(model):
    # a rank below that of the factors
    return LowRank(select(model, rank=2, refresh_every=3), torch.optim.AdamW, lr=0.02)


def train(model, opt, steps):
    losses = []
    for step in steps:
        opt.zero_grad()
        loss = language_loss(model, sentences(8, seed=step % 2))
        loss.backward()
        opt.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("rank", [1, 2, 3, 0.25, 8])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"r": 16}], ids=str)
def test_galore_9_factors_of_lora_are_never_compressed_and_whole_weights_beside_them_are(
    rank, options
):
    groups = select(adapted(**options), rank=rank)
    assert all("down_proj.modules_to_save" in name for name in compressed_names(groups))
    assert len(compressed_names(groups)) == 2
    factors = {name for name in other_names(groups) if "lora_A" in name or "lora_B" in name}
    assert len(factors) == 2 * FACTORS_PER_LAYER
    assert any("lm_head.modules_to_save" in name for name in other_names(groups))


def test_factors_of_lora_are_compressed_where_include_asks_for_it():
    groups = select(adapted(), rank=2, include="lora_A")
    factors = {name for name in compressed_names(groups) if "lora_" in name}
    assert len(factors) == FACTORS_PER_LAYER
    assert all("lora_A" in name for name in factors)


@pytest.mark.parametrize("model_of", [adapted, unfrozen])
def test_galore_9_lora_and_compressed_weights_train_side_by_side_and_what_is_frozen_stays(
    model_of,
):
    model = model_of()
    frozen = [p for p in model.parameters() if not p.requires_grad]
    trained = [p for p in model.parameters() if p.requires_grad]
    start, before = weights(trained), weights(frozen)
    opt = optimizer_of(model)
    losses = train(model, opt, range(30))
    assert losses[-1] < 0.9 * losses[0]
    assert equal(frozen, before)
    assert not any(torch.equal(p, w) for p, w in zip(trained, start, strict=True))
    assert set(opt.state) == set(trained)
    assert any("basis" in state for state in opt.state.values())


def test_base_weights_that_are_unfrozen_under_lora_are_compressed():
    names = compressed_names(select(unfrozen(), rank=2))
    kinds = {name.partition("layers.")[2].partition(".")[2] for name in names}
    assert kinds == {
        "mlp.up_proj.weight",
        "self_attn.k_proj.weight",
        "self_attn.q_proj.base_layer.weight",
    }


def test_a_saved_adapter_and_its_optimizer_resume_bit_for_bit(tmp_path):
    """On a fresh base model, from the adapter alone; the order of parameters stays."""
    model = adapted()
    opt = optimizer_of(model)
    train(model, opt, range(7))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    saved = saved_and_loaded(opt.state_dict())
    train(model, opt, range(7, 14))

    other = peft.PeftModel.from_pretrained(llama(), tmp_path, is_trainable=True)
    another = optimizer_of(other)
    another.load_state_dict(saved)
    train(other, another, range(7, 14))
    same_run(model, opt, other, another)


def test_a_classifier_that_peft_wraps_is_still_left_alone():
    base = llama("LlamaForSequenceClassification", num_labels=6)
    model = adapted(base, task_type="SEQ_CLS", modules_to_save=["down_proj"])
    groups = select(model, rank=2)
    assert any("score.modules_to_save" in name for name in other_names(groups))
    assert all("down_proj" in name for name in compressed_names(groups))
