"""Compiled steps, and what a step costs in operations and in waits for the device."""

import functools

import pytest

torch = pytest.importorskip("torch")

from pretended import reads_of_tensors as reads  # noqa: E402
from test_optim import Tiny, loss_of, parameters, set_gradients, train  # noqa: E402
from torch._dynamo.utils import counters  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from lowrank.optim import LowRank, select  # noqa: E402

# Operations of which none launches a kernel: views, and memory that is not written.
FREE = ("view", "t", "transpose", "select", "slice", "unbind", "unsqueeze", "detach", "alias",
        "empty", "empty_like", "new_empty", "squeeze", "_unsafe_view", "expand", "split",
        "_record_function_enter_new", "_record_function_exit")  # fmt: skip


def loop(model, opt, schedule, step, steps):
    """With a learning rate that changes in every step."""
    for number in steps:
        loss_of(model, number).backward()
        step()
        schedule.step()
        opt.zero_grad()


def build(**options):
    torch.manual_seed(0)
    model = Tiny(tied=False)
    options = {"lr": 1e-2, "refresh_every": 4, "nonfinite": "ignore", **options}
    opt = LowRank(select(model, rank=4), torch.optim.AdamW, **options)
    return model, opt, torch.optim.lr_scheduler.CosineAnnealingLR(opt, 30)


@pytest.fixture
def without_code_generation(monkeypatch):
    """Everything that torch.compile does but for the code in the end, which takes seconds."""
    torch.compiler.reset()

    @functools.cache
    def compiled(function):
        return torch.compile(function, fullgraph=True, backend="aot_eager")

    monkeypatch.setattr("lowrank.optim._stacks.compiled", compiled)
    yield
    torch.compiler.reset()


WAYS = {
    "the step": lambda opt: opt.step,
    "a function around it": lambda opt: lambda: (None, opt.step())[1],
}


@pytest.mark.parametrize("residual", ["scaled", None])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.filterwarnings("ignore:Profiler record function")
@pytest.mark.usefixtures("without_code_generation")
def test_a_compiled_step_is_the_step(way, residual):
    """Over refreshes; nothing is compiled after the first step, whatever the schedule says."""
    one, two = build(residual=residual), build(residual=residual)
    step = torch.compile(WAYS[way](two[1]), backend="eager")
    counters.clear()
    loop(*two, step, range(1))
    graphs = counters["stats"]["unique_graphs"]
    assert graphs >= (2 if residual else 0)
    with torch._dynamo.config.patch(error_on_recompile=True):
        loop(*two, step, range(1, 12))
    assert counters["stats"]["unique_graphs"] == graphs
    loop(*one, one[1].step, range(12))
    for p, q in zip(one[0].parameters(), two[0].parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Profiler record function")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_with_generated_code():
    """Two weights of one shape, so that little is generated."""
    torch.compiler.reset()
    results = []
    for compile_step in (False, True):
        params = parameters([(24, 40)] * 2)
        opt = LowRank(params, torch.optim.AdamW, rank=4, lr=0.1, refresh_every=3)
        if compile_step:
            opt.step = torch.compile(opt.step)
        train(opt, params, 5)
        results.append(params)
    for p, q in zip(*results, strict=True):
        assert torch.allclose(p, q, atol=1e-5)


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("residual", "each", "together"), [("scaled", 6, 36), (None, 3, 2)])
def test_operations_of_a_step(monkeypatch, residual, each, together):
    """Equal shapes are one stack: what is added for each weight are its products and norms.

    For each: two products and the step of the proxy (one operation in SGD); with the residual, two
    for the squares of the columns and one for the change outside the subspace.
    """
    simple = lambda X, dtype: X.to(dtype).square().sum(-2)  # noqa: E731  as on a device
    monkeypatch.setattr("lowrank.optim._stacks.column_squares", simple)
    counts = []
    for number in (2, 6):
        params = parameters([(24, 40), (40, 24)] * (number // 2))
        opt = LowRank(
            params, torch.optim.SGD, rank=4, lr=0.1, nonfinite="ignore", residual=residual
        )
        train(opt, params, 2)
        set_gradients(params, 2)
        with Operations() as seen:
            opt.step()
        counts.append(len(seen.names))
    per_weight = (counts[1] - counts[0]) / 4
    assert per_weight <= each
    assert counts[0] - 2 * per_weight <= together


@pytest.mark.parametrize(("nonfinite", "expected"), [("skip", 1), ("ignore", 0)])
def test_no_step_but_a_refresh_waits_for_the_device(nonfinite, expected):
    """One number for the gradients of all parameters together, or none."""
    model, *_ = build()
    opt = LowRank(
        select(model, rank=4), torch.optim.SGD, lr=0.1, momentum=0.9, nonfinite=nonfinite,
        refresh_every=50,
    )  # fmt: skip
    for step in range(12):
        loss_of(model, step).backward()
        count, _ = reads(opt.step)
        bases = [opt.state[p]["next_refresh"] for p in opt.state if "basis" in opt.state[p]]
        assert len(bases) == 2
        assert step == 0 or count == expected
