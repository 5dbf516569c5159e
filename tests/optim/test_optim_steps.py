"""Every way to step, against dense steps in double precision; and what a step costs on a GPU."""

import itertools
import warnings

import pytest

torch = pytest.importorskip("torch")

from dense import DenseLowRank, DenseMomentum, DenseMuon  # noqa: E402
from pretended import (  # noqa: E402
    Pretended,
    from_numpy,
    launched_by_a_step,
    llama_of_130_million,
    pretending,
    without_numbers,
)
from test_optim import parameters, peak_bytes, set_gradients  # noqa: E402
from test_optim_compiled import without_code_generation  # noqa: E402, F401

from lowrank.optim import LowRank, LowRankMomentum, LowRankMuon  # noqa: E402

OPTIONS = {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.3, "scale": 0.7}
SHAPES = [(48, 96)] * 3 + [(96, 48)] * 2 + [(48, 48), (48, 6, 4, 4), (48,)]
KINDS = {
    "LowRank": (LowRank, DenseLowRank, {"rank": 12, "refresh_every": 3}),
    "LowRank, wide": (LowRank, DenseLowRank, {"rank": 24, "oversampling": 2, "refresh_every": 3}),
    "LowRankMomentum": (LowRankMomentum, DenseMomentum, {"rank": 4, "refresh_every": 2}),
    "LowRankMomentum, every step": (LowRankMomentum, DenseMomentum, {"rank": 4}),
    "LowRankMuon": (LowRankMuon, DenseMuon, {"rank": 4}),
    "LowRankMuon, no momentum": (LowRankMuon, DenseMuon, {"rank": 0}),
}


def short_first(X):
    X = X.flatten(1)
    return X if X.shape[0] <= X.shape[1] else X.T


def is_left(p):
    return p.shape[0] <= p[0].numel()


def on_host(X):
    return X.cpu()


def ordinary(opt, _):
    return opt.step


def one_by_one(opt, params):
    def step():
        for p in params:
            p.held, p.grad = p.grad, None
        for p in params:
            p.grad, p.held = p.held, None
            opt.step()
            p.grad = None

    return step


def in_backward(opt, params):
    opt.step_in_backward()

    def step():
        grads = [p.grad for p in params]
        for p in params:
            p.grad = None
        with torch.enable_grad():
            sum((p * g).sum() for p, g in zip(params, grads, strict=True)).backward()

    return step


WAYS = {  # and whether on a GPU, and uphill
    "ordinary": (ordinary, False, False),
    "ordinary, uphill": (ordinary, False, True),
    "one by one": (one_by_one, False, False),
    "in backward": (in_backward, False, False),
    "stacked": (ordinary, True, False),
    "stacked, uphill": (ordinary, True, True),
    "stacks of one": (one_by_one, True, False),
}


@pytest.mark.parametrize(
    ("kind", "way", "dtype"),
    [
        *(
            (kind, way, torch.float64)
            for kind, way in itertools.product(KINDS, WAYS)
            if "," not in kind or "uphill" not in way  # one of each class
        ),
        ("LowRank", "stacked", torch.float32),
        ("LowRankMomentum", "stacked", torch.float32),
    ],
)
def test_every_way_to_step_is_the_dense_step(kind, way, dtype):
    """Weights of several shapes, on both sides, over refreshes of their bases."""
    cls, dense, more = KINDS[kind]
    how, pretends, maximize = WAYS[way]
    params = parameters(SHAPES, dtype)
    references = [
        dense(short_first(p.detach()), **OPTIONS, maximize=maximize, left=is_left(p))
        for p in params[:-1]
    ]
    gradients = []
    for step in range(8):
        set_gradients(params, step)
        gradients.append([p.grad.clone() for p in params])
    with pretending():
        if pretends:
            params = [torch.nn.Parameter(from_numpy(p.detach().numpy())) for p in params]
        groups = [{"params": params, "maximize": maximize}]
        opt = cls(groups, **more, **OPTIONS)
        step = how(opt, params)
        for given in gradients:
            for p, G in zip(params, given, strict=True):
                p.grad = from_numpy(G.numpy()) if pretends else G.clone()
            step()
            for p, G, reference in zip(params, given, references, strict=False):
                basis = on_host(opt.state[p]["basis"]).double()
                assert float((basis.T @ basis - torch.eye(basis.shape[1])).norm()) < 1e-5
                reference.step(short_first(G), basis)
                error = short_first(on_host(p.detach())).double() - reference.W
                # relative to what the steps have changed, about lr in each number and step
                assert float(error.abs().max()) < (1e-10 if dtype == torch.float64 else 2e-4)
        if pretends and how is ordinary:
            together = {c for c in opt._worker_of.values() if isinstance(c, tuple)}
            assert sorted(map(len, together)) == [1, 1, 2, 3]


@pytest.mark.parametrize("kind", ["LowRank, wide", "LowRankMomentum", "LowRankMuon"])
@pytest.mark.filterwarnings("ignore:Profiler record function")
@pytest.mark.usefixtures("without_code_generation")
def test_compiled_steps_are_dense_steps(kind):
    cls, dense, more = KINDS[kind]
    params = parameters([(48, 96), (96, 48)], torch.float64)
    references = [dense(short_first(p.detach()), **OPTIONS, left=is_left(p)) for p in params]
    opt = cls(params, **more, **OPTIONS)
    step = torch.compile(opt.step, backend="eager")
    for number in range(5):
        set_gradients(params, number)
        step()
        for p, reference in zip(params, references, strict=True):
            reference.step(short_first(p.grad), opt.state[p]["basis"])
            assert torch.allclose(short_first(p.detach()), reference.W, atol=1e-10)


ADAMW = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1, "foreach": True}
BUDGETS = {  # operations and reads
    "LowRank": (LowRank, {"rank": 192, "refresh_every": 10**6}, 249, 1),
    "LowRank, nonfinite='ignore'": (
        LowRank, {"rank": 192, "refresh_every": 10**6, "nonfinite": "ignore"}, 243, 0,
    ),
    "LowRankMomentum": (LowRankMomentum, {"rank": 8}, 366, 1),
    "LowRankMuon": (LowRankMuon, {"rank": 8}, 500, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", BUDGETS)
def test_operations_of_a_step_on_a_gpu(name):
    cls, options, operations, reads = BUDGETS[name]
    with without_numbers():
        matrices, others = llama_of_130_million(torch.bfloat16)
        groups = [{"params": matrices}, {"params": others, "rank": None}]
        opt = cls(groups, **options, **ADAMW)
        launched, waits = launched_by_a_step(opt)
    assert waits == reads
    assert launched <= operations


def test_operations_of_a_refresh_on_a_gpu():
    """Of eight bases: 80 and no read; and 31 more to move the moments."""
    with without_numbers():
        params = [p for p in llama_of_130_million(torch.bfloat16)[0] if p.shape[0] == p.shape[1]][
            :8
        ]
        found = {}
        for every, transport in ((10**6, "keep"), (1, "keep"), (1, "rotate")):
            opt = LowRank(
                params, rank=192, refresh_every=every, transport=transport, nonfinite="ignore",
                **ADAMW,
            )  # fmt: skip
            found[every, transport] = launched_by_a_step(opt)
    assert {reads for _, reads in found.values()} == {0}
    plain = found[10**6, "keep"][0]
    assert found[1, "keep"][0] - plain <= 80
    assert found[1, "rotate"][0] - plain <= 111


def test_operations_follow_the_number_of_shapes_and_the_memory():
    """Twice as many weights cost no operation more while a stack of them fits."""
    with without_numbers():
        matrices = llama_of_130_million(torch.float32)[0]
        square = [p for p in matrices if p.shape == (768, 768)]
        found = {}
        for number, temporary in ((6, None), (12, None), (12, 2**26), (12, 0)):
            opt = LowRank(square[:number], rank=64, temporary_bytes=temporary, **ADAMW)
            found[number, temporary] = launched_by_a_step(opt)[0]
    assert found[6, None] == found[12, None]
    assert found[12, None] < found[12, 2**26] < found[12, 0]


def test_stacks_keep_what_weights_have_of_their_own():
    """Counts of steps, gradients that are missing, NaN, and the state that is left behind."""
    params = parameters([(48, 96)] * 4)
    with pretending(), warnings.catch_warnings():
        warnings.simplefilter("error")
        twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
        params = [torch.nn.Parameter(from_numpy(p.detach().numpy())) for p in params]
        one, two = (
            LowRank(x, rank=24, oversampling=2, lr=0.05, refresh_every=4, transport=transport)
            for x, transport in ((params, "reset"), (twins, "reset"))
        )
        for step in range(9):
            set_gradients(twins, step)
            if step in (0, 3):
                twins[1].grad = None
            if step == 5:
                twins[2].grad[0, 0] = float("nan")
            for p, q in zip(params, twins, strict=True):
                p.grad = None if q.grad is None else from_numpy(q.grad.numpy())
            one.step()
            two.step()
        assert one.skipped_steps == two.skipped_steps == 1
        for p, q in zip(params, twins, strict=True):
            assert float(one.state[p]["step"]) == float(two.state[q]["step"])
            # other random numbers, and so other bases: a change of the same size
            assert float(p.detach().cpu().norm()) == pytest.approx(
                float(q.detach().norm()), rel=0.1
            )
            for value in one.state[p].values():
                if isinstance(value, Pretended):
                    assert (
                        value.inner.untyped_storage().nbytes()
                        == value.numel() * value.element_size()
                    )


@pytest.mark.parametrize(
    ("cls", "dtype", "rounding"),
    [
        (LowRank, torch.float32, "nearest"),
        (LowRank, torch.bfloat16, "stochastic"),
        (LowRank, torch.bfloat16, "compensated"),
        (LowRankMomentum, torch.float32, "nearest"),
        (LowRankMomentum, torch.bfloat16, "nearest"),
        (LowRankMomentum, torch.bfloat16, "compensated"),
        (LowRankMuon, torch.float32, "nearest"),
        (LowRankMuon, torch.bfloat16, "stochastic"),
    ],
)
def test_stacks_need_no_more_than_the_temporary_bytes(cls, dtype, rounding):
    """Beyond the state, which the first step makes; over refreshes."""
    rank, limit = (64 if cls is LowRank else 16), 2**23
    with pretending():
        params = parameters([(256, 512)] * 12, dtype)
        pretended = [torch.nn.Parameter(Pretended(p.detach().clone())) for p in params]
        more = {} if cls is LowRankMuon else {"refresh_every": 2}
        opt = cls(
            pretended,
            rank=rank,
            temporary_bytes=limit,
            lr=0.1,
            foreach=True,
            rounding=rounding,
            **more,
        )
        for step in range(4):
            set_gradients(params, step)
            for p, q in zip(pretended, params, strict=True):
                p.grad = Pretended(q.grad.clone())
            made = peak_bytes(opt.step) - (step == 0) * storage_of(opt)
            assert made <= limit
        chunks = set(opt._worker_of.values())
        assert all(weight.stacked for chunk in chunks for weight in chunk)
        assert len(chunks) > 1


def storage_of(opt):
    values = [X for state in opt.state.values() for X in state.values()]
    tensors = [X for X in values if isinstance(X, Pretended)]
    return sum(X.inner.untyped_storage().nbytes() for X in tensors)
