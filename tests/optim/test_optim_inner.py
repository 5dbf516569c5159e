"""Which optimizer is wrapped: its state in a new basis, its names, its groups, its checkpoints."""

import copy
import functools
import math
import warnings

import pytest

torch = pytest.importorskip("torch")

from pretended import pretending  # noqa: E402
from test_optim import (  # noqa: E402
    equal,
    parameters,
    same_state,
    set_gradients,
    snapshot,
    train,
    weights,
)

from lowrank.compress import Subspace  # noqa: E402
from lowrank.optim import LowRank, LowRankMomentum, LowRankMuon  # noqa: E402
from lowrank.optim._inner import KNOWN, inner_of, transported  # noqa: E402

SHAPES = [(24, 40), (40, 24), (24,)]


def of_package(name, cls, **options):
    """An optimizer of a package that may not be installed."""
    return pytest.param(name, cls, options, id=".".join([name, cls, *options]))


MOVED = [
    *(of_package("torch.optim", name) for name in ("Adam", "AdamW", "NAdam", "RAdam", "Adagrad")),
    of_package("torch.optim", "Adam", amsgrad=True),
    of_package("torch.optim", "SGD", momentum=0.9),
    of_package("torch.optim", "RMSprop", momentum=0.9, centered=True),
    of_package("torch.optim", "Adafactor"),
    of_package("transformers", "Adafactor", relative_step=False, beta1=0.9),
    of_package("lion_pytorch", "Lion"),
    of_package("pytorch_optimizer", "Lion"),
    *(of_package("bitsandbytes.optim", name) for name in ("Adam", "AdamW", "Lion")),
]
BEGUN_ANEW = [
    *(of_package("torch.optim", name) for name in ("Adadelta", "Adamax", "ASGD", "Rprop")),
    *(
        of_package("pytorch_optimizer", name)
        for name in ("CAME", "SM3", "FTRL", "AdaBelief", "AdaFactor", "ScalableShampoo", "Tiger")
    ),
    *(
        of_package("bitsandbytes.optim", name)
        for name in ("AdamW8bit", "RMSprop", "Adagrad", "LAMB", "AdEMAMix")
    ),
]


def wrapped(package, cls, options, shapes=SHAPES, **ours):
    make = getattr(pytest.importorskip(package), cls)
    params = parameters(shapes)
    return params, LowRank(params, make, rank=8, refresh_every=4, lr=1e-3, **options, **ours)


@pytest.mark.parametrize(("package", "cls", "options"), MOVED)
def test_known_state_is_moved(monkeypatch, package, cls, options):
    """Means as coordinates are, squares stay squares, columns stay; and nothing is said."""
    calls = []

    def watched(inner, states, C, *rest):
        before = copy.deepcopy(states)
        after = transported(inner, states, C, *rest)
        calls.append((inner, before, C, copy.deepcopy(after)))
        return after

    monkeypatch.setattr("lowrank.optim._refresh.transported", watched)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        params, opt = wrapped(package, cls, options)
        train(opt, params, 9)
    assert len(calls) >= 4
    kinds = set()
    for inner, (before,), (C,), (after,) in calls:
        assert after.keys() == before.keys()
        for name, value in after.items():
            kind = inner.meanings.get(name, "number")
            kinds.add(kind)
            if kind == "mean":
                assert torch.allclose(value, C @ before[name], atol=1e-6 * value.abs().max())
            elif "squares" in kind:
                assert bool((value >= 0).all())
                assert not torch.equal(value, before[name])
            else:
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(before[name]))
    assert kinds >= {"number"} or kinds >= {"mean"}
    assert all(bool(torch.isfinite(p).all()) for p in params)


@pytest.mark.parametrize(("package", "cls", "options"), BEGUN_ANEW)
def test_unknown_state_begins_anew_and_is_said_to_once(package, cls, options):
    params, opt = wrapped(package, cls, options)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        train(opt, params, 14)
    told = [str(one.message) for one in seen if "is reset" in str(one.message)]
    assert len(told) == 1
    assert cls in told[0]
    assert all(bool(torch.isfinite(p).all()) for p in params)
    assert all(opt.state[p]["began"] > 0 for p in params[:2])


@pytest.mark.parametrize("transport", ["reset", "keep"])
def test_who_asks_for_it_is_told_nothing(transport):
    params, opt = wrapped("torch.optim", "Adadelta", {}, transport=transport)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(opt, params, 9)


def test_many_steps_with_the_usual_options():
    """Adadelta's squares would turn negative in the first refresh, if they were taken for means."""
    (p,) = params = parameters([(24, 40)])
    opt = LowRank(params, torch.optim.Adadelta, rank=8)
    with pytest.warns(UserWarning, match="is reset at each refresh"):
        train(opt, params, 210)
    assert bool(torch.isfinite(p).all())


def test_new_state_in_a_known_class_is_unknown():
    class Wider(torch.optim.AdamW):
        def step(self, closure=None):
            super().step(closure)
            for state in self.state.values():
                state["mine"] = torch.ones_like(state["exp_avg"])

    params = parameters(SHAPES)
    opt = LowRank(params, Wider, rank=8, refresh_every=4)
    with pytest.warns(UserWarning, match="`mine`"):
        train(opt, params, 9)


def factory(cls, **fixed):
    def make(params, **options):
        return cls(params, **fixed, **options)

    return make


class OfAdafactor(torch.optim.Adafactor):
    pass


class OfAdamW(torch.optim.AdamW):
    pass


@pytest.mark.parametrize(
    ("plain", "others"),
    [
        (torch.optim.Adafactor, [functools.partial(torch.optim.Adafactor), OfAdafactor]),
        (torch.optim.AdamW, [functools.partial(torch.optim.AdamW), OfAdamW]),
    ],
)
def test_a_partial_a_function_or_a_subclass_is_the_same_optimizer(plain, others):
    """In its steps, over a refresh; and the functions, in their checkpoints."""

    def run(make):
        params = parameters(SHAPES)
        opt = LowRank(params, make, rank=8, refresh_every=3, lr=0.01)
        train(opt, params, 7)
        return params, opt

    wanted, opt = run(plain)
    for make in (*others, factory(plain)):
        found, other = run(make)
        assert equal(found, wanted)
        if not isinstance(make, type):
            other.load_state_dict(opt.state_dict())
            opt.load_state_dict(other.state_dict())


def test_a_checkpoint_that_was_saved_under_the_name_of_a_function_loads():
    params = parameters(SHAPES)
    make = functools.partial(torch.optim.AdamW)
    opt = LowRank(params, make, rank=4, lr=0.1)
    train(opt, params, 2)
    saved = opt.state_dict()
    for group in saved["param_groups"]:
        group["optimizer"] = "partial"
    opt.load_state_dict(saved)
    train(opt, params, 1, start=2)


def test_options_with_our_names_are_refused():
    class Scaled(torch.optim.SGD):
        def __init__(self, params, lr=0.1, scale=2.0):
            super().__init__(params, lr)
            self.defaults["scale"] = scale

    with pytest.raises(TypeError, match="its options scale have the same names"):
        LowRank(parameters(SHAPES), Scaled, rank=4)


def test_a_rate_that_the_optimizer_chooses():
    """transformers' Adafactor without `lr`."""
    adafactor = pytest.importorskip("transformers").Adafactor
    params = parameters(SHAPES)
    start = weights(params)
    opt = LowRank(params, adafactor, rank=4, lr=None)
    train(opt, params, 4)
    assert not any(torch.equal(p, w) for p, w in zip(params, start, strict=True))
    assert all(bool(torch.isfinite(p).all()) for p in params)
    decaying = LowRank(params, adafactor, rank=4, lr=None, weight_decay=0.1)
    with pytest.raises(ValueError, match="`lr` must be a number if `weight_decay` is not zero"):
        train(decaying, params, 1)


# -- groups that change ---------------------------------------------------------------------------

OPTIMIZERS = {
    "LowRank": lambda params: LowRank(params, rank=4, lr=0.1, refresh_every=3),
    "LowRankMomentum": lambda params: LowRankMomentum(params, rank=4, lr=0.1),
    "LowRankMuon": lambda params: LowRankMuon(params, rank=4, lr=0.1),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("shape", [(24, 40), (30, 50), (7,)])
def test_a_parameter_is_replaced(make, shape):
    """As codes for pruning do, also by one of another shape: the new one moves, the old one not."""
    params = parameters(SHAPES)
    opt = make(params)
    train(opt, params, 2)
    (new,) = parameters([shape], seed=1)
    old, opt.param_groups[0]["params"][0] = opt.param_groups[0]["params"][0], new
    start = weights([old, new, *params[1:]])
    set_gradients([old], 5)
    train(opt, [new, *params[1:]], 2, start=2)
    after = [old, new, *params[1:]]
    transported = [not torch.equal(p, w) for p, w in zip(after, start, strict=True)]
    assert transported == [False, True, True, True]
    assert ("basis" in opt.state[new]) == (len(shape) > 1)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_parameters_are_appended_and_groups_deleted(make):
    params = parameters([(24, 40), (24, 40), (40, 24), (24,)])
    named = [{"params": [("a", params[0])]}, {"params": [("b", params[1])]}]
    opt = make(named)
    train(opt, params[:2], 2)
    opt.param_groups[0]["params"] += params[2:]
    start = weights(params)
    train(opt, params, 2, start=2)
    assert not any(torch.equal(p, w) for p, w in zip(params, start, strict=True))
    assert opt.report().rows[1].name == "1"
    del opt.param_groups[1]
    del opt.state[params[1]]  # which torch's `state_dict` wants, too
    start = weights(params)
    train(opt, params, 2, start=4)
    assert torch.equal(params[1], start[1])
    assert not torch.equal(params[0], start[0])
    opt.load_state_dict(copy.deepcopy(opt.state_dict()))
    opt.param_groups.clear()
    start = weights(params)
    train(opt, params, 1, start=6)
    assert equal(params, start)


def test_in_the_backward_pass_the_groups_are_read_too():
    params = parameters(SHAPES)
    opt = LowRank(params, rank=4, lr=0.1)
    with opt.step_in_backward():
        del opt.param_groups[0]["params"][0]
        start = weights(params)
        sum((p * p).sum() for p in params).backward()
    assert torch.equal(params[0], start[0])
    assert not torch.equal(params[1], start[1])


def test_a_rank_that_is_changed_holds_from_the_next_refresh():
    params = parameters(SHAPES[:1])
    opt = LowRank(params, rank=4, lr=0.1, refresh_every=3)
    train(opt, params, 4)
    opt.param_groups[0]["rank"] = 6
    train(opt, params, 4, start=4)
    assert opt.state[params[0]]["basis"].shape == (24, 6)
    opt.param_groups[0]["rank"] = -1
    with pytest.raises(ValueError, match="`rank`"):
        train(opt, params, 1, start=8)


# -- checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_options_of_later_versions_are_filled_in(make):
    params = parameters(SHAPES)
    opt = make(params)
    train(opt, params, 2)
    saved = opt.state_dict()
    for group in saved["param_groups"]:
        for name in ("rounding", "scale", "oversampling", "skipped_steps"):
            del group[name]
    other = make(parameters(SHAPES))
    other.load_state_dict(saved)
    assert other.param_groups[0]["scale"] == opt.param_groups[0]["scale"]
    assert other.skipped_steps == 0
    same_state(snapshot(other), snapshot(opt))


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("groups", ["of AdamW", "without options", "with a wrong option"])
def test_groups_of_another_optimizer_are_refused_whole(make, groups):
    params = parameters(SHAPES)
    opt = make(params)
    train(opt, params, 2)
    before, options = snapshot(opt), copy.deepcopy(opt.state_dict()["param_groups"])
    saved = copy.deepcopy(opt.state_dict())
    if groups == "of AdamW":
        plain = torch.optim.AdamW(params)
        train(plain, params, 1)
        saved = plain.state_dict()
    elif groups == "without options":
        saved["param_groups"] = [{"params": [0, 1, 2]}]
    else:
        saved["param_groups"][0]["side"] = "upper"
    with pytest.raises(ValueError, match=r"none of its options|`side` must be one of"):
        opt.load_state_dict(saved)
    same_state(snapshot(opt), before)
    assert opt.state_dict()["param_groups"] == options
    train(opt, params, 1, start=2)


# -- precision -------------------------------------------------------------------------------------


def test_bias_corrections_of_weights_in_double_precision():
    """1 − β₂ᵗ in single precision is zero for this β₂."""
    (p,) = params = parameters([(24, 40)], torch.float64)
    opt = LowRank(params, rank=4, lr=1e-3, betas=(0.9, 1 - 1e-8), refresh_every=2)
    train(opt, params, 12)
    assert bool(torch.isfinite(p).all())


def on_both(dtype, rounding, make, steps=20, lr=1e-5):
    """Ones that are to fall by about lr in each step, on a processor and as on a GPU."""
    for pretends in (False, True):
        with pretending():
            device = "cuda" if pretends else "cpu"
            W = [torch.ones(64, 96, dtype=dtype, device=device) for _ in range(2)]
            params = [torch.nn.Parameter(X) for X in W]
            opt = make(params, rounding, lr)
            G = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).abs()
            G = G.bfloat16().float()  # the same in every dtype
            for _ in range(steps):
                for p in params:
                    grad = G.to(dtype)
                    p.grad = grad.to("cuda") if pretends else grad.clone()
                opt.step()
            p = params[0].detach()
            yield (p.cpu() if pretends else p).double(), opt, params[0]


ROUNDING = {
    "LowRank": lambda params, rounding, lr: LowRank(
        params, rank=8, lr=lr, weight_decay=0.0, rounding=rounding
    ),
    "LowRankMomentum": lambda params, rounding, lr: LowRankMomentum(
        params, rank=8, lr=lr, scale=1.0, weight_decay=0.0, rounding=rounding
    ),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", ROUNDING.values(), ids=ROUNDING)
def test_small_steps_on_half_precision_weights_are_not_lost(make, dtype):
    """Each is far below half a unit in the last place."""
    exact = [found for found, _, _ in on_both(torch.float32, "nearest", make)]
    wanted = float((exact[0] - 1).mean())
    assert wanted < -1e-5
    for found, _, _ in on_both(dtype, "nearest", make):
        assert bool((found == 1).all())
    for found, _, _ in on_both(dtype, "stochastic", make):
        assert float((found - 1).mean()) == pytest.approx(wanted, rel=0.2)
    compensated = on_both(dtype, "compensated", make)
    for (found, opt, p), of_its_kind in zip(compensated, exact, strict=True):
        lost = opt.state[p]["compensation"]
        assert lost.dtype == dtype
        assert lost.shape == p.shape
        # both together have twice the digits; and the exact one has rounded in each of 20 steps
        error = found + lost.cpu().double() - of_its_kind
        assert float(error.abs().max()) < max(torch.finfo(dtype).eps ** 2 / 4, 20 * 2.0**-24)
        assert abs(float(error.mean())) < 0.05 * abs(wanted)


def test_the_bytes_of_a_compensation_are_told_and_resumed():
    params = [torch.nn.Parameter(p.detach().bfloat16()) for p in parameters([(24, 40), (40, 24)])]
    plain, opt = (LowRank(params, rank=4, rounding=kind) for kind in ("nearest", "compensated"))
    for each in (plain, opt):
        train(each, params, 2)
    assert opt.state_bytes() - plain.state_bytes() == 2 * 24 * 40 * 2
    assert opt.report().bytes == opt.state_bytes()
    others = [torch.nn.Parameter(p.detach().clone()) for p in params]
    resumed = LowRank(others, rank=4, rounding="compensated")
    resumed.load_state_dict(opt.state_dict())
    for each, part in ((opt, params), (resumed, others)):
        train(each, part, 3, start=2)
    assert equal(params, others)


def test_stochastic_rounding_is_without_bias_and_of_neighbors_only():
    """Of numbers of every size, subnormal ones too; and what needs no rounding stays."""
    from lowrank.optim._stacks import _round_to_neighbors  # noqa: PLC0415

    for dtype, least in ((torch.bfloat16, -130), (torch.float16, -26)):
        sizes = torch.logspace(least, 14, 40, base=2)
        numbers = (sizes * torch.tensor([1.0, 1.3, -1.7])[:, None]).flatten()
        w = numbers.repeat(20_000, 1)
        _round_to_neighbors(w, dtype, torch.Generator().manual_seed(0))
        rounded = w.to(dtype).float()
        below, above = rounded.amin(0), rounded.amax(0)
        unit = above - below
        assert bool((below <= numbers).all())
        assert bool((numbers <= above).all())
        for column, number in zip(rounded.T, numbers, strict=True):
            assert len(column.unique()) <= 2
            if number.to(dtype) == number:
                assert bool((column == number).all())
        bias = (rounded.double().mean(0) - numbers.double()).abs()
        assert bool((bias <= 4.5 * 0.5 * unit / math.sqrt(20_000)).all())


def test_meanings_are_found_by_package_and_class():
    assert inner_of(torch.optim.AdamW, {}).meanings == KNOWN["torch.AdamW"]

    class Adam(torch.optim.Optimizer):  # of another package
        def __init__(self, params):
            super().__init__(params, {})

        def step(self, closure=None):
            pass

    assert inner_of(Adam, {}).meanings is None


# -- what groups, layouts and devices do to a step ------------------------------------------------


def test_compensations_of_another_memory_layout():
    (p,) = [torch.nn.Parameter(torch.ones(32, 16, 3, 3, dtype=torch.bfloat16))]
    p.data = p.data.to(memory_format=torch.channels_last)
    opt = LowRank([p], rank=4, lr=1e-4, weight_decay=0.0, rounding="compensated")
    for _ in range(100):
        p.grad = torch.ones_like(p)
        opt.step()
    whole = p.detach().double() + opt.state[p]["compensation"].double()
    assert float(whole.mean()) < 1 - 1e-3


class Clipped(torch.optim.AdamW):
    """Whose steps depend on the norm of a gradient."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad = p.grad / p.grad.norm().clamp(min=1.0)
        return super().step(closure)


@pytest.mark.parametrize(
    ("make", "options", "expected"),
    [
        (torch.optim.AdamW, {"lr": 0.0}, True),
        (torch.optim.SGD, {"momentum": 0.9}, True),
        (torch.optim.AdamW, {"lr": torch.tensor(0.0)}, True),
        (torch.optim.Muon, {"lr": 0.0}, False),
        (torch.optim.Adafactor, {}, False),
        (Clipped, {}, False),
    ],
)
def test_which_optimizers_work_element_by_element(make, options, expected):
    """Whatever rate a warm-up begins with."""
    assert inner_of(make, options).is_elementwise(torch.device("cpu")) is expected


def test_normalized_steps_are_not_elementwise():
    optimizers = pytest.importorskip("pytorch_optimizer")
    for make, options in ((optimizers.StableAdamW, {}), (optimizers.Lion, {"use_gc": True})):
        assert not inner_of(make, options).is_elementwise(torch.device("cpu"))


def test_centered_squares_stay_above_the_squares_of_their_means():
    """Of gradients that hardly change, whose variance is small beside their mean."""
    generator = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    A = draw(24, 24) @ torch.diag(0.7 ** torch.arange(24, dtype=torch.float64)) @ draw(24, 40)
    p = torch.nn.Parameter(torch.zeros(24, 40, dtype=torch.float64))
    opt = LowRank([p], torch.optim.RMSprop, rank=16, refresh_every=10, lr=1e-3, centered=True)
    for _ in range(120):
        p.grad = A + 0.3 * A.abs() * draw(24, 40)
        opt.step()
    assert bool(torch.isfinite(p).all())


def foreign(opt, options):
    """Whether the options belong to a sibling; GaLore's name of one counts as that."""
    names = {"refresh_every" if name == "update_proj_gap" else name for name in options}
    return not names.isdisjoint(opt._foreign)


@pytest.mark.parametrize(
    "change",
    [{"rank": None}, {"rank": 40}, {"rank": 6}, {"side": "right"}, {"average": 0.5}, {"scale": 0.5},
     {"state_dtype": torch.bfloat16}, {"update_proj_gap": 1}],
)  # fmt: skip
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_edited_options_hold_or_are_refused(make, change):
    """Back and forth: nothing breaks, and every weight moves."""
    params = parameters([(24, 24), (24, 40)])
    opt = make(params)
    old = {name: opt.param_groups[0].get(name) for name in change}
    train(opt, params, 4)
    for options in (change, old):
        opt.param_groups[0].update(options)
        start = weights(params)
        if make is not OPTIMIZERS["LowRank"] and foreign(opt, options):
            with pytest.raises(ValueError, match="is not an option of LowRank"):
                opt.add_param_group({"params": parameters([(24, 40)]), **options})
            return
        train(opt, params, 5, start=4)
        opt.report()
        assert not any(torch.equal(p, w) for p, w in zip(params, start, strict=True))
        if options.get("rank") == 6:
            assert {opt.state[p]["basis"].shape[1] for p in params} == {6}
        old.pop("update_proj_gap", None)


def test_a_sketch_that_is_given_up_serves_no_basis():
    params = parameters([(24, 40)])
    opt = LowRank(params, rank=4, lr=0.1, refresh_every=2, average=0.5)
    train(opt, params, 3)
    assert "sketch" in opt.state[params[0]]
    opt.param_groups[0]["average"] = 0.0
    train(opt, params, 1, start=3)
    assert "sketch" not in opt.state[params[0]]


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, 1.0)])
def test_betas_of_one_are_refused_also_later(betas):
    params = parameters([(24, 40)])
    opt = LowRankMomentum(params, rank=4)
    opt.param_groups[0]["betas"] = betas
    with pytest.raises(ValueError, match="`betas`"):
        train(opt, params, 1)


@pytest.mark.parametrize("name", ["nonfinite", "temporary_bytes", "budget_bytes"])
def test_options_of_the_whole_are_refused_in_a_group(name):
    with pytest.raises(ValueError, match=f"`{name}` is an option of the optimizer"):
        LowRank([{"params": parameters(SHAPES), name: 1}], rank=4)


def test_a_sparse_gradient_is_named():
    params = parameters([(24, 40)] * 2)
    opt = LowRank(params, rank=4)
    set_gradients(params, 0)
    params[1].grad = params[1].grad.to_sparse()
    with pytest.raises(TypeError, match="parameter 1 has a sparse gradient"):
        opt.step()


def test_keep_moves_the_state_where_the_rank_changes():
    (p,) = params = parameters([(24, 40)])
    opt = LowRank(
        params, rank=16, energy=0.9, refresh_every=3, oversampling=2, transport="keep", lr=0.1
    )
    for step, rank in enumerate([2] * 4 + [14] * 4):
        generator = torch.Generator().manual_seed(step)
        p.grad = torch.randn(24, rank, generator=generator) @ torch.randn(
            rank, 40, generator=generator
        )
        opt.step()
    assert float(opt.state[p]["step"]) == 8


def test_counts_of_steps_that_a_device_keeps(monkeypatch):
    """In states without `began`, of an earlier version, weights that began apart stay apart."""
    params = parameters([(24, 40)] * 3)
    opt = LowRank(params, rank=8, refresh_every=6, transport="reset", lr=0.01, fused=True)
    train(opt, params, 5)
    saved = copy.deepcopy(opt.state_dict())
    counts = [float(opt.state[p]["step"]) for p in params]
    assert len(set(counts)) > 1
    for state in saved["state"].values():
        del state["began"]
    with pretending():
        others = [torch.nn.Parameter(p.detach().to("cuda")) for p in params]
        made = LowRank(
            others, rank=8, refresh_every=10**6, transport="reset", lr=0.01, foreach=True
        )
        for group in saved["param_groups"]:
            group.update(fused=None, foreach=True, refresh_every=10**6)
        for state in saved["state"].values():
            state["next_refresh"] = 10**6
        made.load_state_dict(saved)
        for p in others:
            p.grad = torch.ones(24, 40).to("cuda")
        made.step()
        assert [float(made.state[p]["step"]) for p in others] == [count + 1 for count in counts]


def test_warm_starts_of_stacks(monkeypatch):
    """Each refresh begins with the weight's own basis, which a stack of sketches can't."""
    seen = []
    refresh = Subspace.refresh

    def watched(self, G, /, *, step=0):
        seen.append(self.basis is not None)
        return refresh(self, G, step=step)

    monkeypatch.setattr(Subspace, "refresh", watched)
    with pretending():
        params = parameters([(96, 128)] * 3)
        others = [torch.nn.Parameter(p.detach().to("cuda")) for p in params]
        opt = LowRank(others, rank=64, refresh_every=1, warm_start=True)
        for step in range(2):
            set_gradients(params, step)
            for p, q in zip(params, others, strict=True):
                q.grad = p.grad.to("cuda")
            opt.step()
    assert seen == [True] * 3


def test_optimizers_that_count_steps_in_their_groups_count_each_step_once():
    seen = []

    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            group = self.param_groups[0]
            group["count"] = group.get("count", 0) + 1
            seen.append(group["count"])
            return super().step(closure)

    weights = [torch.nn.Parameter(torch.ones(64, n)) for n in (64, 80, 96)]
    optimizer = LowRank([{"params": weights, "rank": 4}], Counting, lr=0.1)
    for _ in range(5):
        for p in weights:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert max(seen) <= 6  # once more where it is tried on an example
