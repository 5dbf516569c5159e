"""What is compressed of the models that people fine-tune."""

import pytest

torch = pytest.importorskip("torch")

from tiny_models import (  # noqa: E402
    LAYERS,
    bert,
    compressed_names,
    gpt2,
    language_loss,
    llama,
    other_names,
    sentences,
)

pytest.importorskip("transformers")

from lowrank.optim import LowRank, select  # noqa: E402


def of_every_layer(prefix, names):
    return {f"{prefix}.{i}.{name}.weight" for i in range(LAYERS) for name in names}


LLAMA = of_every_layer(
    "model.layers",
    [
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    ],
)
GPT2 = of_every_layer(
    "transformer.h", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
)  # Conv1D
BERT = of_every_layer(
    "bert.encoder.layer",
    [
        *(f"attention.self.{name}" for name in ("query", "key", "value")),
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ],
)
LABELS = {"num_labels": 20}  # as many as make it worth while to compress a head

MODELS = {
    "Llama": (llama, LLAMA),
    "Llama, tied": (lambda: llama(tied=True), LLAMA),
    "Llama, classifying": (lambda: llama("LlamaForSequenceClassification", **LABELS), LLAMA),
    "GPT-2": (gpt2, GPT2),
    "GPT-2, classifying": (lambda: gpt2("GPT2ForSequenceClassification", **LABELS), GPT2),
    "BERT, classifying": (
        lambda: bert("BertForSequenceClassification", **LABELS),
        {*BERT, "bert.pooler.dense.weight"},
    ),
    "BERT, classifying tokens": (lambda: bert("BertForTokenClassification", **LABELS), BERT),
    "BERT, filling in": (
        lambda: bert("BertForMaskedLM"),
        {*BERT, "cls.predictions.transform.dense.weight"},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_llamafactory_2815_linear_layers_are_compressed_and_heads_embeddings_norms_are_not(name):
    build, expected = MODELS[name]
    model = build()
    groups = select(model, rank=4)
    assert compressed_names(groups) == expected
    assert other_names(groups) == {name for name, _ in model.named_parameters()} - expected
    heads = ("lm_head", "score", "classifier", "decoder")
    left = [n for n, p in model.named_parameters() if p.ndim > 1 and n not in expected]
    kinds = ("embed", "wte", "wpe", *heads)
    assert left
    assert all(any(kind in name for kind in kinds) for name in left)


@pytest.mark.parametrize("name", ["Llama", "Llama, tied", "GPT-2"])
def test_galore_6_state_of_a_language_model_is_what_the_report_promised_before_training(name):
    """And the loss falls with it."""
    model = MODELS[name][0]()
    groups = select(model, rank=4)
    opt = LowRank(groups, torch.optim.AdamW, lr=0.02)
    losses = []
    for step in range(25):
        opt.zero_grad()
        loss = language_loss(model, sentences(8, seed=step % 2))
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    # beyond it only counts of steps, and norms of residuals
    assert 0 <= opt.state_bytes() - groups.report().bytes <= 8 * len(groups.report().rows)


def test_transformers_32249_every_parameter_of_a_model_is_in_the_report_with_its_rank():
    model = gpt2()
    table = {row.name: row for row in select(model, rank=4).report().rows}
    assert set(table) == {name for name, _ in model.named_parameters()}
    assert {name for name, row in table.items() if row.rank} == GPT2
    assert table["transformer.h.0.attn.c_attn.weight"].shape == (32, 96)
