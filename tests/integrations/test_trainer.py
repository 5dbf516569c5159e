"""The Trainer of Hugging Face, with everything switched on that its users switch on."""

import functools

import pytest

torch = pytest.importorskip("torch")

from test_optim import equal, weights  # noqa: E402
from tiny_models import (  # noqa: E402
    examples,
    gpt2,
    llama,
    no_state_of_accelerate_is_left,  # noqa: F401
    same_run,
    seen_by,
    watch_loads,
)

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from lowrank.optim import LowRank, LowRankMomentum, select  # noqa: E402

STEPS, WARM_UP, STOP = 8, 3, 5
OPTIONS = {"lr": 0.02, "weight_decay": 0.01, "seed": 3}


class StopAfter(transformers.TrainerCallback):
    """What a cluster does to a job, at a step that has been saved."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):  # noqa: ARG002
        if state.global_step == self.step:
            control.should_save = control.should_training_stop = True


def groups_of(model):
    return select(model, rank=8, refresh_every=3)


def by_instance(model, cls=torch.optim.AdamW):
    return {"optimizers": (LowRank(groups_of(model), cls, **OPTIONS), None)}


def by_class(model, cls=torch.optim.AdamW):
    options = {"params": groups_of(model), "optimizer": cls, **OPTIONS}
    return {"optimizer_cls_and_kwargs": (LowRank, options)}


def of_low_rank_momentum(model):
    return {"optimizers": (LowRankMomentum(groups_of(model), lr=OPTIONS["lr"]), None)}


def trainer_of(model, folder, *, how=by_instance, callbacks=(), **options):
    usual = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_grad_norm": 0.5,
        "warmup_steps": WARM_UP,
        "lr_scheduler_type": "cosine",
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    arguments = transformers.TrainingArguments(output_dir=str(folder), **{**usual, **options})
    return transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=examples(12),  # so that the run stops in the middle of an epoch
        callbacks=list(callbacks),
        **how(model),
    )


def stepping_in_backward(model):
    """Per-layer updates, which are told by the Trainer's Accelerator when to step."""
    from accelerate.state import GradientState  # noqa: PLC0415

    opt = LowRank(groups_of(model), torch.optim.AdamW, **OPTIONS)
    opt.step_in_backward(when=lambda: GradientState().sync_gradients)
    return {"optimizers": (opt, None)}


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize(
    ("how", "model_of"),
    [(by_instance, gpt2), (by_class, llama), (of_low_rank_momentum, llama)],
)
def test_galore_35_and_swift_10161_a_stopped_run_resumes_bit_for_bit(
    tmp_path, monkeypatch, how, model_of
):
    """A fresh Trainer and another model, with accumulation, warm-up, clipping and dropout."""
    unbroken = trainer_of(model_of(), tmp_path / "unbroken", how=how)
    unbroken.train()

    stopped = trainer_of(model_of(), tmp_path / "run", how=how, callbacks=[StopAfter(STOP)])
    stopped.train()
    assert stopped.state.global_step == STOP
    assert not equal(stopped.model.parameters(), unbroken.model.parameters())

    resumed = trainer_of(model_of(seed=1), tmp_path / "run", how=how)
    loads = watch_loads(monkeypatch)
    resumed.train(resume_from_checkpoint=True)
    assert ("optimizer.pt", True) in loads
    assert all(only_weights for _, only_weights in loads)

    assert resumed.state.global_step == STEPS
    assert logged(resumed, "loss") == logged(unbroken, "loss")
    parts = [(t.model, t.optimizer.optimizer) for t in (unbroken, resumed)]
    assert all(isinstance(opt, LowRank | LowRankMomentum) for _, opt in parts)
    same_run(*parts[0], *parts[1])


@pytest.mark.parametrize("how", [by_instance, by_class])
def test_transformers_31707_the_warm_up_of_the_trainer_reaches_the_inner_optimizers(tmp_path, how):
    """One warm-up, and not one for every micro-batch; also GaLore 46, APOLLO 14."""
    model, seen = llama(), seen_by(torch.optim.AdamW, "lr")
    trainer = trainer_of(model, tmp_path, how=functools.partial(how, cls=seen))
    start = weights(model.parameters())
    trainer.train()
    rates = list(dict.fromkeys(seen.noted))
    twin = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=OPTIONS["lr"])
    schedule = transformers.get_cosine_schedule_with_warmup(twin, WARM_UP, STEPS)
    expected = []
    for _ in range(STEPS):
        expected += schedule.get_last_lr()
        twin.step()
        schedule.step()
    assert rates == expected
    assert not any(torch.equal(p, w) for p, w in zip(model.parameters(), start, strict=True))


def test_galore_78_the_trainer_accumulates_micro_batches_to_the_big_batch(tmp_path):
    """Up to rounding; also transformers 29588, where accumulation had to be refused."""
    ends = []
    for size, parts in ((4, 1), (1, 4)):
        model = llama().double()
        sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
        trainer_of(model, tmp_path, **sizes).train()
        ends.append(weights(model.parameters()))
    for one, many in zip(*ends, strict=True):
        assert torch.allclose(one, many, rtol=0, atol=1e-8)


def test_llamafactory_5887_per_layer_updates_accumulate_and_are_resumed(tmp_path):
    """They had to be refused with accumulation, and lost their state; also transformers 29588."""
    ways = {"usual": by_instance, "unbroken": stepping_in_backward}
    runs = []
    for name, how in ways.items():
        runs.append(trainer_of(llama(), tmp_path / name, how=how, max_grad_norm=0.0))
        runs[-1].train()
    folder, options = tmp_path / "run", {"how": stepping_in_backward, "max_grad_norm": 0.0}
    trainer_of(llama(), folder, callbacks=[StopAfter(STOP)], **options).train()
    runs.append(trainer_of(llama(seed=1), folder, **options))
    runs[-1].train(resume_from_checkpoint=True)
    first, *others = [(trainer.model, trainer.optimizer.optimizer) for trainer in runs]
    for other in others:
        same_run(*first, *other)


def test_swift_10143_what_the_trainer_steps_has_state_of_low_rank_and_lowers_the_loss(tmp_path):
    model = llama()
    trainer = trainer_of(model, tmp_path, how=by_class, max_steps=30)
    trainer.train()
    opt = trainer.optimizer.optimizer
    for group in opt.param_groups:
        for name, p in zip(group["param_names"], group["params"], strict=True):
            assert ("basis" in opt.state[p]) == (group["rank"] is not None), name
    assert opt.state_bytes() < 0.8 * opt.report().uncompressed_bytes
    losses = logged(trainer, "loss")
    assert losses[-1] < 0.7 * losses[0]


def test_the_trainer_resumes_from_no_checkpoint_of_another_rank_and_says_which(tmp_path):
    trainer_of(llama(), tmp_path, callbacks=[StopAfter(2)]).train()

    def other_rank(model):
        return {"optimizers": (LowRank(select(model, rank=6), torch.optim.AdamW, **OPTIONS), None)}

    trainer = trainer_of(llama(), tmp_path, how=other_rank)
    with pytest.raises(ValueError, match="rank 8 in the state and 6 here"):
        trainer.train(resume_from_checkpoint=True)
    assert not trainer.optimizer.state
