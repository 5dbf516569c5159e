"""Loops around the optimizer: schedules, clipping, accumulation, and scaled losses."""

import math

import pytest

torch = pytest.importorskip("torch")

from test_optim import Tiny, equal, loss_of, same_state, snapshot, weights  # noqa: E402
from tiny_models import same_run, saved_and_loaded, seen_by  # noqa: E402
from torch.optim import lr_scheduler  # noqa: E402

from lowrank.optim import LowRank, select  # noqa: E402

STEPS = 10


def build(cls=torch.optim.AdamW, **options):
    """A model and its optimizer; what is not compressed has a learning rate of its own."""
    torch.manual_seed(0)
    model = Tiny()
    groups = select(model, rank=4, refresh_every=3)
    groups[1]["lr"] = 0.002
    return model, LowRank(groups, cls, **{"lr": 0.01, **options})


def one_step(model, opt, step):
    opt.zero_grad()
    loss = loss_of(model, step)
    loss.backward()
    opt.step()
    return loss.item()


# -- schedules ----------------------------------------------------------------------------------


def cosine(opt):
    return lr_scheduler.CosineAnnealingLR(opt, STEPS)


def one_cycle(opt):
    return lr_scheduler.OneCycleLR(opt, [0.01, 0.002], total_steps=STEPS)


def sequential(opt):
    warm_up = lr_scheduler.LinearLR(opt, 0.1, total_iters=4)
    return lr_scheduler.SequentialLR(opt, [warm_up, cosine(opt)], milestones=[4])


def warm_up_of_transformers(opt):
    transformers = pytest.importorskip("transformers")
    return transformers.get_cosine_schedule_with_warmup(opt, 3, STEPS)


SCHEDULES = [cosine, one_cycle, sequential, warm_up_of_transformers]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("option", ["lr", "betas"])
def test_transformers_31707_every_schedule_reaches_the_inner_optimizers(schedule, option):
    """A cycle moves the first of `betas` as well."""
    seen = seen_by(torch.optim.AdamW, option)
    model, opt = build(seen)
    told = schedule(opt)
    expected = []
    for step in range(STEPS):
        expected.append([group[option] for group in opt.param_groups])
        seen.noted.clear()
        one_step(model, opt, step)
        told.step()
        assert set(seen.noted) == set(expected[-1])
        assert len(seen.noted) >= 2  # with and without compression
    constant = all(values == expected[0] for values in expected)
    assert constant == (option == "betas" and schedule is not one_cycle)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda f: f.__name__)
def test_apollo_14_a_resumed_run_follows_the_rest_of_its_schedule_bit_for_bit(schedule):
    model, opt = build()
    told = schedule(opt)
    for step in range(STEPS):
        if step == 5:
            parts = {"model": model, "opt": opt, "schedule": told}
            saved = saved_and_loaded({name: part.state_dict() for name, part in parts.items()})
        one_step(model, opt, step)
        told.step()
    other, another = build()
    again = schedule(another)
    other.load_state_dict(saved["model"])
    another.load_state_dict(saved["opt"])
    again.load_state_dict(saved["schedule"])
    for step in range(5, STEPS):
        one_step(other, another, step)
        again.step()
    assert again.get_last_lr() == told.get_last_lr()
    same_run(model, opt, other, another)


# -- clipping and accumulation ------------------------------------------------------------------


def test_a_step_of_SGD_on_clipped_gradients_is_the_whole_step_times_what_clipping_left():
    factors, moves = [], []
    for most in (math.inf, 2.0**-4):
        model, opt = build(torch.optim.SGD)
        model.double()
        before = weights(model.parameters())
        loss_of(model, 0).backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), most))
        opt.step()
        after = weights(model.parameters())
        moves.append([new - old for new, old in zip(after, before, strict=True)])
        factors.append(min(1.0, most / norm))
    assert factors[0] == 1.0
    assert factors[1] < 0.2
    for whole, clipped in zip(*moves, strict=True):
        assert float(whole.norm()) > 0.0
        assert torch.allclose(clipped, factors[1] * whole, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("inner", ["AdamW", "SGD"])
def test_galore_78_accumulated_micro_batches_of_a_model_equal_the_big_batch(inner):
    """Up to rounding, over two refreshes; also LLaMA-Factory 5887."""
    runs = []
    for parts in (1, 4):
        model, opt = build(getattr(torch.optim, inner))
        model.double()
        for step in range(8):
            generator = torch.Generator().manual_seed(step)
            batch = torch.randint(40, (8, 9), generator=generator)
            for part in batch.chunk(parts):
                logits = model(part[:, :-1]).flatten(0, 1)
                loss = torch.nn.functional.cross_entropy(logits, part[:, 1:].flatten())
                (loss / parts).backward()
            opt.step()
            opt.zero_grad()
        runs.append(weights(model.parameters()))
    for one, many in zip(*runs, strict=True):
        assert torch.allclose(one, many, rtol=0, atol=1e-9)


# -- scaled losses --------------------------------------------------------------------------------


class ScaledLoop:
    """Half precision as PyTorch's documentation does it: scale, unscale, clip, step, schedule."""

    def __init__(self, clip):
        self.model, self.opt = build()
        self.clip = clip
        # so large that the gradients overflow at once, and again whenever it has grown
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**26, growth_interval=4)
        self.schedule = lr_scheduler.CosineAnnealingLR(self.opt, 60)

    def parts(self):
        names = ("model", "opt", "scaler", "schedule")
        return {name: getattr(self, name) for name in names}

    def step(self, step):
        """The loss, and whether the step was taken."""
        self.opt.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = loss_of(self.model, step % 2)
        self.scaler.scale(loss).backward()
        if self.clip:
            self.scaler.unscale_(self.opt)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
        scale = self.scaler.get_scale()
        self.scaler.step(self.opt)
        self.scaler.update()
        taken = self.scaler.get_scale() >= scale
        if taken:
            self.schedule.step()
        return loss.item(), taken


@pytest.mark.parametrize("clip", [False, True])
def test_galore_26_overflow_in_half_precision_skips_steps_and_training_recovers(clip):
    loop = ScaledLoop(clip)
    losses, taken = [], []
    for step in range(40):
        before, state = weights(loop.model.parameters()), snapshot(loop.opt)
        loss, went = loop.step(step)
        if not went:
            assert equal(loop.model.parameters(), before)
            same_state(snapshot(loop.opt), state)
        losses.append(loss)
        taken.append(went)
    assert not any(taken[:2])  # the first basis waits for the first good gradient
    assert False in taken[taken.index(True) :]  # and later again
    assert loop.opt.skipped_steps == 0  # the scaler skips, and does not call it
    assert loop.schedule.last_epoch == taken.count(True)
    updates = {state["updates"] for state in loop.opt.state.values() if "basis" in state}
    assert updates == {taken.count(True)}
    assert losses[-1] < 0.8 * losses[0]


def test_galore_35_a_run_in_half_precision_resumes_between_overflows_bit_for_bit():
    loop = ScaledLoop(clip=True)
    taken = []
    for step in range(24):
        if step == 11:
            saved = saved_and_loaded({k: part.state_dict() for k, part in loop.parts().items()})
        taken.append(loop.step(step)[1])
    assert {True, False} == set(taken[:11]) == set(taken[11:])
    other = ScaledLoop(clip=True)
    for name, part in other.parts().items():
        part.load_state_dict(saved[name])
    assert [other.step(step)[1] for step in range(11, 24)] == taken[11:]
    assert other.scaler.get_scale() == loop.scaler.get_scale()
    same_run(loop.model, loop.opt, other.model, other.opt)
