"""Accelerate, as its documentation has a training loop."""

import pytest

torch = pytest.importorskip("torch")

from test_optim import equal, weights  # noqa: E402
from tiny_models import (  # noqa: E402
    compressed_names,
    forget_accelerate,
    gpt2,
    language_loss,
    llama,
    no_state_of_accelerate_is_left,  # noqa: F401
    same_run,
    seen_by,
    sentences,
    watch_loads,
)

accelerate = pytest.importorskip("accelerate")
pytest.importorskip("transformers")

from lowrank.optim import LowRank, select  # noqa: E402

MICRO_BATCHES = 10  # in one run; two of them make a step


class Loop:
    def __init__(self, model, cls=torch.optim.AdamW, parts=2, size=2, *, in_backward=False):
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=parts)
        opt = LowRank(select(model, rank=4, refresh_every=2), cls, lr=0.02)
        schedule = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.1, total_iters=5)
        data = sentences(parts * size * 5)
        loader = torch.utils.data.DataLoader(data, batch_size=size)
        prepared = self.accelerator.prepare(model, opt, loader, schedule)
        self.model, self.opt, self.loader, self.schedule = prepared
        self.in_backward = in_backward
        if in_backward:
            opt.step_in_backward(when=lambda: self.accelerator.sync_gradients)

    def run(self, first=0, last=None):
        """Micro-batches of the data, in their order."""
        loader = self.accelerator.skip_first_batches(self.loader, first)
        for number, tokens in enumerate(loader, first):
            if number == last:
                return
            with self.accelerator.accumulate(self.model):
                self.accelerator.backward(language_loss(self.model, tokens))
                if self.accelerator.sync_gradients and not self.in_backward:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), 0.5)
                self.opt.step()
                self.schedule.step()
                self.opt.zero_grad()


@pytest.mark.parametrize(("model_of", "in_backward"), [(llama, True), (gpt2, False)])
def test_galore_35_save_state_and_load_state_resume_bit_for_bit(
    tmp_path, monkeypatch, model_of, in_backward
):
    """In another Accelerator, with another model, and with dropout."""
    loop = Loop(model_of(), in_backward=in_backward)
    loop.run(last=6)
    loop.accelerator.save_state(str(tmp_path))
    middle = weights(loop.model.parameters())
    loop.run(first=6)
    assert not equal(loop.model.parameters(), middle)

    forget_accelerate()
    other = Loop(model_of(seed=1), in_backward=in_backward)
    loads = watch_loads(monkeypatch)
    other.accelerator.load_state(str(tmp_path))
    assert ("optimizer.bin", True) in loads
    assert equal(other.model.parameters(), middle)
    other.run(first=6)
    assert other.schedule.get_last_lr() == loop.schedule.get_last_lr()
    same_run(loop.model, loop.opt.optimizer, other.model, other.opt.optimizer)


def test_galore_78_accumulate_gives_the_step_of_the_big_batch():
    """Up to rounding, and the schedule goes on once for every step."""
    ends = []
    for parts, size in ((1, 4), (4, 1)):
        seen = seen_by(torch.optim.AdamW, "lr")
        loop = Loop(llama().double(), seen, parts, size)
        loop.run()
        rates = list(dict.fromkeys(seen.noted))
        assert rates == pytest.approx([0.02, 0.0164, 0.0128, 0.0092, 0.0056])
        ends.append(weights(loop.model.parameters()))
    for one, many in zip(*ends, strict=True):
        assert torch.allclose(one, many, rtol=0, atol=1e-8)


def test_what_accelerate_has_prepared_is_compressed_and_left_alone_as_it_was_selected():
    model = llama()
    names = compressed_names(select(model, rank=4))
    loop = Loop(model)
    loop.run()
    opt = loop.opt.optimizer
    by_name = dict(loop.accelerator.unwrap_model(loop.model).named_parameters())
    assert {name for name, p in by_name.items() if "basis" in opt.state[p]} == names
    assert len(opt.state) == len(by_name)


@pytest.mark.parametrize("bad", [False, True])
def test_a_step_that_a_scaler_skips_is_noticed(bad):
    """So that schedules, which Accelerate steps with the optimizer, stand still."""
    from accelerate.optimizer import AcceleratedOptimizer  # noqa: PLC0415

    forget_accelerate()
    accelerate.Accelerator(cpu=True)
    p = torch.nn.Parameter(torch.ones(24, 40))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    opt = AcceleratedOptimizer(LowRank([p], rank=4), scaler=scaler)
    scaler.scale(p.sum() * (float("inf") if bad else 1.0)).backward()
    opt.step()
    assert opt.step_was_skipped is bad
    assert bool((p == 1).all()) is bad
