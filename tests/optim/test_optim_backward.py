"""Steps taken in the backward pass: equal to the ordinary ones, and whole in a checkpoint.

Some tests are named after the places where users complained of per-layer updates.
"""

import copy
import io
import math

import pytest

torch = pytest.importorskip("torch")

from test_optim import (  # noqa: E402
    Tiny,
    equal,
    loss_of,
    parameters,
    same_state,
    set_gradients,
    snapshot,
    weights,
)

from lowrank.optim import LowRank, select  # noqa: E402

INNER = {
    "adamw": (torch.optim.AdamW, {"lr": 1e-2}),
    "adamw foreach": (torch.optim.AdamW, {"lr": 1e-2, "foreach": True}),
    "sgd": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9}),
    "adaptive rank": (torch.optim.AdamW, {"lr": 1e-2, "energy": 0.9, "max_rank": 8}),
}


def build(cls=torch.optim.AdamW, **options):
    torch.manual_seed(0)
    model = Tiny(tied=False)
    options = {"lr": 1e-2, "refresh_every": 5, **options}
    return model, LowRank(select(model, rank=4), cls, **options)


class Loop:
    """Accumulates gradients over micro-batches, of which the last may not reach every layer."""

    def __init__(self, model, opt, micro_batches=1, *, in_backward):
        self.model, self.opt, self.micro_batches = model, opt, micro_batches
        self.micro = 0
        self.schedule = torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.1, total_iters=20)
        if in_backward:
            opt.step_in_backward(when=lambda: self.micro == self.micro_batches - 1)

    def run(self, steps):
        for step in steps:
            for micro in range(self.micro_batches):
                self.micro = micro
                loss = loss_of(self.model, 10 * step + micro) / self.micro_batches
                if micro == 2:  # of no use to the layers between
                    loss = self.model.lm_head(self.model.embedding.weight).square().mean()
                loss.backward()
            self.opt.step()
            self.schedule.step()
            self.opt.zero_grad()


@pytest.mark.parametrize("micro_batches", [1, 2, 3])
@pytest.mark.parametrize("name", INNER)
def test_galore_78_and_llamafactory_5887_they_equal_the_ordinary_ones(name, micro_batches):
    """Weights and states bit by bit, also where a micro-batch leaves out some layers.

    Over refreshes, with a schedule that is in step (APOLLO 14, transformers 30371, trl 1638).
    """
    cls, options = INNER[name]
    (one, ordinary), (two, early) = build(cls, **options), build(cls, **options)
    Loop(one, ordinary, micro_batches, in_backward=False).run(range(13))
    Loop(two, early, micro_batches, in_backward=True).run(range(13))
    assert equal(one.parameters(), two.parameters())
    same_state(snapshot(ordinary), snapshot(early))


@pytest.mark.parametrize("in_backward", [False, True])
def test_transformers_29588_the_whole_state_is_saved_and_resumed(in_backward):
    """From steps in the backward pass to either kind, bit by bit; not a dummy optimizer's."""
    model, opt = build()
    Loop(model, opt, in_backward=True).run(range(7))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, file)
    Loop(model, _reopened(opt), in_backward=True).run(range(7, 15))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert len(saved["opt"]["state"]) == len(list(model.parameters()))
    again, other = build()
    loop = Loop(again, other, in_backward=in_backward)
    again.load_state_dict(saved["model"])
    other.load_state_dict(saved["opt"])
    loop.run(range(7, 15))
    assert equal(model.parameters(), again.parameters())


def _reopened(opt):
    opt._hooks.close()
    return opt


def test_one_gradient_exists_at_a_time():
    model, opt = build()
    alive = []
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(q.grad is not None for q in model.parameters()))
        )
    opt.step_in_backward()
    loss_of(model, 0).backward()
    assert alive == [1] * len(list(model.parameters()))
    assert all(p.grad is None for p in model.parameters())


def test_close_goes_back_to_ordinary_steps():
    (one, ordinary), (two, early) = build(), build()
    loop = Loop(two, early, in_backward=False)
    with early.step_in_backward():
        loop.run(range(3))
    loop.run(range(3, 6))
    Loop(one, ordinary, in_backward=False).run(range(6))
    assert equal(one.parameters(), two.parameters())
    loss_of(two, 0).backward()
    assert all(p.grad is not None for p in two.parameters())


def test_it_is_in_force_once():
    _, opt = build()
    opt.step_in_backward()
    with pytest.raises(RuntimeError, match="is already active"):
        opt.step_in_backward()


def test_copies_step_as_usual():
    model, opt = build()
    opt.step_in_backward()
    _, other = copied = copy.deepcopy((model, opt))
    Loop(*copied, in_backward=False).run(range(2))
    assert other.state_bytes() > 0
    assert opt.state_bytes() == 0


def test_parameters_that_are_added_later_are_stepped_by_step():
    params = parameters()
    opt = LowRank(params[:1], torch.optim.AdamW, rank=4, lr=0.1)
    opt.step_in_backward()
    opt.add_param_group({"params": params[1:], "rank": 3})
    start = weights(params)
    sum((p**2).sum() for p in params).backward()
    assert [p.grad is None for p in params] == [True, False, False, False, False]
    opt.step()
    assert not any(torch.equal(p, w) for p, w in zip(params, start, strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_gradient_skips_its_parameter(bad):
    """It is counted once a step; the others go on as if it had no gradient."""
    params, twins = parameters(), parameters()
    opt, twin = (LowRank(x, torch.optim.AdamW, rank=4, lr=0.1) for x in (params, twins))
    opt.step_in_backward()
    start = weights(params)
    set_gradients(twins, 0)
    gradients = [p.grad.clone() for p in twins]
    gradients[1][0, 0] = gradients[3][0, 0, 0, 0] = bad
    torch.autograd.backward([p.clone() for p in params], gradients)
    opt.step()
    twins[1].grad = twins[3].grad = None
    twin.step()
    assert opt.skipped_steps == 1
    assert equal(params, twins)
    assert torch.equal(params[1], start[1])
    torch.autograd.backward([params[0].clone()], [gradients[0]])
    opt.step()
    assert opt.skipped_steps == 1


def test_raise_names_the_parameter():
    (p,) = params = parameters([(24, 40)])
    opt = LowRank([("weight", p)], torch.optim.AdamW, rank=4, nonfinite="raise")
    opt.step_in_backward()
    start = weights(params)
    with pytest.raises(FloatingPointError, match="'weight'"):
        (p * math.nan).sum().backward()
    assert equal(params, start)


def test_llamafactory_2926_refused_where_gradients_are_averaged_later(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    opt = LowRank(parameters(), torch.optim.AdamW, rank=4)
    with pytest.raises(RuntimeError, match="before it is averaged"):
        opt.step_in_backward()


def test_frozen_parameters_have_no_hook():
    params = parameters([(24, 40), (24, 40)])
    params[1].requires_grad_(False)
    opt = LowRank(params, torch.optim.AdamW, rank=4, lr=0.1)
    start = weights(params)
    with opt.step_in_backward():
        params[0].sum().backward()
    assert [torch.equal(p, w) for p, w in zip(params, start, strict=True)] == [False, True]


def test_a_skip_is_counted_where_close_comes_before_step():
    (p,) = parameters([(24, 40)])
    opt = LowRank([p], torch.optim.AdamW, rank=4)
    with opt.step_in_backward():
        (p * math.nan).sum().backward()
    assert opt.skipped_steps == 1


def test_a_grad_scaler_is_refused():
    """Its factor would still be in the gradients; afterwards they are looked at as ever."""
    (p,) = parameters([(24, 40)])
    opt = LowRank([p], torch.optim.AdamW, rank=4)
    opt.step_in_backward()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(p.sum()).backward()
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="GradScaler"):
        scaler.step(opt)
    opt._hooks.close()
    start = weights([p])
    p.grad[0, 0] = math.nan
    opt.step()
    assert equal([p], start)
