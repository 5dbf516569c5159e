"""The wrapped optimizer: its update, its state, and what it refuses."""

import copy
import io
import math
import multiprocessing
import pickle
from itertools import chain

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pretended import reads_of_tensors as reads  # noqa: E402

from lowrank.compress import Subspace  # noqa: E402
from lowrank.optim import LowRank, select  # noqa: E402
from lowrank.optim._inner import inner_of, transported  # noqa: E402

SHAPES = [(24, 40), (40, 24), (24, 24), (24, 6, 2, 2), (24,)]


def parameters(shapes=SHAPES, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def set_gradients(params, step, dtype=None):
    """Gradients that depend on the step only; of rank 5 and some noise."""
    generator = torch.Generator().manual_seed(1000 + step)
    for p in params:
        G = torch.randn(p.shape, generator=generator)
        if p.ndim > 1:
            flat = G.flatten(1)
            low = torch.randn(flat.shape[0], 5, generator=generator) @ torch.randn(
                5, flat.shape[1], generator=generator
            )
            G = (low + 0.3 * flat).view(p.shape)
        p.grad = G.to(dtype or p.dtype)


def train(optimizer, params, steps, start=0):
    for step in range(start, start + steps):
        set_gradients(params, step)
        optimizer.step()


def weights(params):
    return [p.detach().clone() for p in params]


def equal(xs, ys):
    return all(torch.equal(x, y) for x, y in zip(xs, ys, strict=True))


def snapshot(optimizer):
    return copy.deepcopy(optimizer.state_dict()["state"])


def same_state(one, two):
    assert one.keys() == two.keys()
    for key in one:
        assert one[key].keys() == two[key].keys()
        for name, value in one[key].items():
            other = two[key][name]
            if isinstance(value, torch.Tensor):
                assert value.dtype == other.dtype
                assert torch.equal(value, other), name
            else:
                assert value == other, name


class Tiny(torch.nn.Module):
    """Two linear layers between an embedding and a head that shares its weight."""

    def __init__(self, tied=True):
        super().__init__()
        self.embedding = torch.nn.Embedding(40, 32)
        self.up = torch.nn.Linear(32, 64)
        self.norm = torch.nn.LayerNorm(64)
        self.down = torch.nn.Linear(64, 32)
        self.lm_head = torch.nn.Linear(32, 40, bias=False)
        if tied:
            self.lm_head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        return self.lm_head(x + self.down(torch.relu(self.norm(self.up(x)))))


def loss_of(model, seed):
    tokens = torch.randint(40, (8, 9), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.cross_entropy(
        model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()
    )


# -- the update ---------------------------------------------------------------------------------

INNER = {
    "adamw": (torch.optim.AdamW, {"lr": 1e-2, "betas": (0.8, 0.9), "weight_decay": 0.0}),
    "adamw foreach": (torch.optim.AdamW, {"lr": 1e-2, "foreach": True, "weight_decay": 0.0}),
    "adamw fused": (torch.optim.AdamW, {"lr": 1e-2, "fused": True, "weight_decay": 0.0}),
    "amsgrad": (torch.optim.Adam, {"lr": 1e-2, "amsgrad": True}),
    "sgd": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
    "nadam": (torch.optim.NAdam, {"lr": 1e-2}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-2}),
    "adagrad": (torch.optim.Adagrad, {"lr": 1e-2}),
}


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("shape", SHAPES[:4])
def test_the_weight_moves_as_the_coordinates_do(name, shape):
    """``W_t − W_0 = Q P_t`` for P_t stepped by the inner optimizer alone, on ``QᵀG``."""
    cls, options = INNER[name]
    (p,) = params = parameters([shape])
    start = p.detach().clone().flatten(1)
    opt = LowRank(params, cls, rank=6, residual=None, **options)
    P = inner = None
    for step in range(5):
        set_gradients(params, step)
        opt.step()
        Q, G = opt.state[p]["basis"], p.grad.flatten(1)
        left = G.shape[0] <= G.shape[1]
        if P is None:
            P = torch.nn.Parameter(torch.zeros(6, max(G.shape)))
            inner = cls([P], **options)
        P.grad = Q.mT @ (G if left else G.mT)
        inner.step()
        transported = Q @ P.detach()
        change = p.detach().flatten(1) - start
        assert torch.allclose(change if left else change.mT, transported, atol=2e-6)


def test_adafactor_is_shown_the_weight():
    """Its step is relative to the size of the weight; coordinates begin at ``QᵀW``."""
    (p,) = params = parameters([(24, 40)])
    start = p.detach().clone()
    opt = LowRank(params, torch.optim.Adafactor, rank=6, residual=None, lr=1e-2)
    set_gradients(params, 0)
    opt.step()
    Q = opt.state[p]["basis"]
    P = torch.nn.Parameter(Q.mT @ start)
    P.grad = Q.mT @ p.grad
    before = P.detach().clone()
    torch.optim.Adafactor([P], lr=1e-2).step()
    assert torch.allclose(p.detach() - start, Q @ (P.detach() - before), atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES[:4])
@pytest.mark.parametrize("maximize", [False, True])
def test_residual_decay_and_scale_against_dense_formulas(shape, maximize):
    """The published update with matrices of full size, in double precision, by hand."""
    (p,) = params = parameters([shape], torch.float64)
    lr, decay, scale, beta1, beta2, eps = 0.02, 0.1, 0.7, 0.8, 0.9, 1e-8
    opt = LowRank(
        params,
        torch.optim.AdamW,
        rank=5,
        lr=lr,
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=decay,
        scale=scale,
        maximize=maximize,
    )
    W = p.detach().flatten(1).clone().numpy()
    left = W.shape[0] <= W.shape[1]
    W, m, v, limit = (W if left else W.T), 0.0, 0.0, None
    for step in range(6):
        set_gradients(params, step)
        opt.step()
        Q = opt.state[p]["basis"].numpy()
        G = p.grad.flatten(1).numpy() * (-1 if maximize else 1)
        G = G if left else G.T
        R = Q.T @ G
        m, v = beta1 * m + (1 - beta1) * R, beta2 * v + (1 - beta2) * R**2
        t = step + 1
        N = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
        outside = np.linalg.norm(G - Q @ R, axis=0)
        least = outside * np.sqrt(5 / (len(G) - 5)) / 3
        S = (G - Q @ R) * np.linalg.norm(N, axis=0) / np.maximum(np.linalg.norm(R, axis=0), least)
        size = np.linalg.norm(S)
        if limit is not None and size > 1.01 * limit:
            S, size = S * (1.01 * limit / size), 1.01 * limit
        limit = size
        W = (1 - lr * decay) * W - lr * scale * (Q @ N + S)
        got = p.detach().flatten(1).numpy()
        assert np.allclose(got if left else got.T, W, atol=1e-8)
        assert math.isclose(float(opt.state[p]["residual_norm"]), limit, rel_tol=1e-6)


@pytest.mark.parametrize("leak", [0.0, 1e-6, 1e-3])
def test_what_is_small_in_the_basis_is_not_made_large_outside(leak):
    """Columns that the basis holds almost nothing of change by a few learning rates, and no more.

    The published scale moves such a weight by 1/leak learning rates in the first step, where the
    growth limiter has nothing to compare with.
    """
    (p,) = params = parameters([(24, 40)])
    opt = LowRank(params, torch.optim.AdamW, rank=4, lr=0.01, random_fraction=0.0)
    start = p.detach().clone()
    generator = torch.Generator().manual_seed(0)
    p.grad = torch.zeros(24, 40)
    p.grad[:4, :20] = 30 * torch.randn(4, 20, generator=generator)
    p.grad[4:, 20:] = torch.randn(20, 20, generator=generator)
    p.grad[:4, 20:] = leak
    opt.step()
    change = (p.detach() - start)[4:, 20:]
    assert change.square().mean().sqrt() < 0.01 * 3 * 1.1


def test_the_growth_limiter_recovers_from_nothing():
    """A step without a gradient does not hold the residual at zero ever after."""
    (p,) = params = parameters([(24, 40)])
    opt = LowRank(params, torch.optim.AdamW, rank=4, lr=0.1)
    p.grad = torch.zeros_like(p)
    opt.step()
    for step in range(3):
        set_gradients(params, step)
        opt.step()
    assert opt.state[p]["residual_norm"] > 1.0


@pytest.mark.parametrize("name", [*INNER, "adafactor", "lion", "torchao 8 bit"])
@pytest.mark.filterwarnings("ignore")  # of packages, on being imported
def test_every_inner_optimizer_trains_and_resumes(name):
    """The loss falls, parameters that are not compressed move as without us, state round-trips."""
    if name == "lion":
        cls, options = pytest.importorskip("lion_pytorch").Lion, {"lr": 1e-3}
    elif name == "torchao 8 bit":
        cls, options = pytest.importorskip("torchao.optim").AdamW8bit, {"lr": 1e-2}
    else:
        usual = (torch.optim.Adafactor, {"lr": 1e-1})
        cls, options = INNER.get(name, usual)

    def build():
        torch.manual_seed(0)
        model = Tiny(tied=False)
        return model, LowRank(select(model, rank=4), cls, refresh_every=5, **options)

    def go(model, opt, steps):
        for step in steps:
            opt.zero_grad()
            loss = loss_of(model, step % 2)
            loss.backward()
            opt.step()
        return float(loss)

    with torch.compiler.set_stance("force_eager"):  # torchao compiles, for a minute
        model, opt = build()
        first = go(model, opt, range(1))
        alone = [p for name, p in Tiny(tied=False).named_parameters() if "norm" in name]
        assert go(model, opt, range(1, 40)) < first
        assert len(alone) == 2

        model, opt = build()
        go(model, opt, range(12))
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, file)
        go(model, opt, range(12, 25))
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        again, other = build()
        again.load_state_dict(saved["model"])
        other.load_state_dict(saved["opt"])
        go(again, other, range(12, 25))
        assert equal(model.parameters(), again.parameters())


class BornWithState(torch.optim.Optimizer):
    """Makes its state when it is made, and at no other time."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["sum"] = torch.full_like(p, 0.5)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    total = self.state[p]["sum"]
                    total += p.grad**2
                    p.sub_(group["lr"] * p.grad / total.sqrt())


def test_inner_optimizers_that_are_born_with_their_state():
    params, twins = parameters(), parameters()
    train(LowRank(params, BornWithState, rank=4, residual=None), params, 6)
    opt = LowRank(twins, BornWithState, rank=4, residual=None)
    train(opt, twins, 3)
    saved = copy.deepcopy(opt.state_dict())
    other = LowRank(twins, BornWithState, rank=4, residual=None)
    other.load_state_dict(saved)
    train(other, twins, 3, start=3)
    assert equal(params, twins)
    alone = parameters()
    train(BornWithState(alone), alone, 6)
    assert torch.equal(params[-1], alone[-1])  # the vector


def test_what_is_not_compressed_is_stepped_by_the_inner_optimizer_alone():
    params, twins = parameters(), parameters()
    groups = [{"params": params[:2], "rank": 4}, {"params": params[2:], "lr": 0.05}]
    opt = LowRank(groups, torch.optim.AdamW, lr=0.01, weight_decay=0.1)
    inner = torch.optim.AdamW([{"params": twins[2:], "lr": 0.05}], weight_decay=0.1)
    for step in range(4):
        set_gradients(params, step)
        set_gradients(twins, step)
        opt.step()
        inner.step()
    assert equal(params[2:], twins[2:])
    assert set(opt.state[params[2]]) == set(inner.state[twins[2]])
    assert not equal(params[:2], twins[:2])


def test_options_may_differ_by_group_and_follow_the_scheduler():
    params = parameters([(24, 40), (24, 40)])
    start = weights(params)
    groups = [{"params": params[:1], "rank": 3, "lr": 0.0}, {"params": params[1:], "rank": 0.5}]
    opt = LowRank(groups, torch.optim.AdamW, lr=1.0, residual=None, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda epoch: 0.1**epoch)
    sizes = []
    for _ in range(3):
        before = weights(params)
        set_gradients(params, 0)
        opt.step()
        schedule.step()
        sizes.append(float((params[1] - before[1]).norm()))
    assert torch.equal(params[0], start[0])
    assert opt.state[params[0]]["basis"].shape == (24, 3)
    assert opt.state[params[1]]["basis"].shape == (24, 12)
    assert sizes[1] < 0.2 * sizes[0]
    assert sizes[2] < 0.2 * sizes[1]


def test_a_parameter_without_a_gradient_stays():
    params = parameters()
    opt = LowRank(params, torch.optim.AdamW, rank=4, lr=0.1)
    set_gradients(params, 0)
    params[0].grad = None
    start = weights(params)
    opt.step()
    assert torch.equal(params[0], start[0])
    assert params[0] not in opt.state
    train(opt, params, 2, start=1)
    assert not torch.equal(params[0], start[0])


def test_closure():
    params = parameters([(24, 40)])
    opt = LowRank(params, torch.optim.AdamW, rank=4, lr=0.1)

    def closure():
        opt.zero_grad()
        loss = (params[0] ** 2).sum()
        loss.backward()
        return loss

    assert opt.step(closure) > opt.step(closure)


# -- refreshes ----------------------------------------------------------------------------------


def test_refreshes_are_spread_over_the_steps(monkeypatch):
    """After the first step no step refreshes more than its share, and each parameter in turn."""
    counts, refresh = [], Subspace.refresh

    def counted(self, *args, **options):
        counts[-1].append(self.index)
        return refresh(self, *args, **options)

    monkeypatch.setattr(Subspace, "refresh", counted)
    params = parameters([(12, 20)] * 7)
    opt = LowRank(params, torch.optim.AdamW, rank=3, lr=0.1, refresh_every=5)
    for step in range(21):
        counts.append([])
        set_gradients(params, step)
        opt.step()
    assert len(counts[0]) == 7
    assert max(map(len, counts[1:])) <= 2
    for start in (1, 6, 11):
        assert sorted(chain.from_iterable(counts[start : start + 5])) == list(range(7))


def test_random_directions_and_the_seed():
    """The same seed gives the same run; another one, or another place, another basis."""

    def run(**options):
        params = parameters([(24, 40), (24, 40)])
        opt = LowRank(params, torch.optim.AdamW, rank=5, lr=0.1, **options)
        set_gradients(params, 0)
        params[1].grad = params[0].grad.clone()
        opt.step()
        return [opt.state[p]["basis"] for p in params]

    assert equal(run(), run())
    assert not equal(run(), run(seed=1))
    one, two = run()
    assert not torch.equal(one, two)
    one, two = run(random_fraction=0.0)
    assert torch.linalg.norm(one @ one.mT - two @ two.mT) < 0.1  # up to the sketch


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.AdamW])
def test_rotation_keeps_what_the_moments_mean(cls):
    """In a new basis of the same subspace, the mean gradient that is lifted is the same."""
    state_name = "momentum_buffer" if cls is torch.optim.SGD else "exp_avg"
    (p,) = params = parameters([(24, 40)])
    options = {"momentum": 0.9} if cls is torch.optim.SGD else {}
    opt = LowRank(
        params, cls, rank=5, lr=1e-9, refresh_every=3, random_fraction=0.0, residual=None, **options
    )
    generator = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(24, 5, generator=generator))[0]
    mean, lifted = torch.zeros(24, 40), []
    for _ in range(3):
        p.grad = (
            U
            @ torch.diag(10.0 ** torch.randn(5, generator=generator))
            @ torch.randn(5, 40, generator=generator)
        )
        opt.step()
        mean = 0.9 * mean + (p.grad if cls is torch.optim.SGD else 0.1 * p.grad)
        lifted.append(opt.state[p]["basis"].clone())
    p.grad = U @ torch.randn(5, 40, generator=generator)
    opt.step()
    mean = 0.9 * mean + (p.grad if cls is torch.optim.SGD else 0.1 * p.grad)
    Q = opt.state[p]["basis"]
    assert not torch.allclose(Q, lifted[-1], atol=1e-2)
    assert torch.linalg.norm(Q @ opt.state[p][state_name] - mean) < 1e-3 * mean.norm()


def test_moved_squares_bound_the_step_in_new_directions():
    """In directions of which nothing is known, squares are those seen outside the old basis."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(3, 8, generator=generator)
    adam = {"step": torch.tensor(50.0), "exp_avg": mean, "exp_avg_sq": mean.square() + 0.5}
    factored = {
        "step": torch.tensor(50.0),
        "row_var": torch.rand(3, 1, generator=generator),
        "col_var": torch.rand(1, 8, generator=generator),
    }
    outside, betas = torch.full((1, 8), 2.0), {"betas": (0.9, 0.999)}
    bias = 1 - 0.999**50
    nothing, same = torch.zeros(1, 2, 3), torch.eye(3)[None]
    for cls, state, group in (
        (torch.optim.Adam, adam, betas),
        (torch.optim.Adafactor, factored, {}),
    ):
        inner = inner_of(cls, {})
        (new,), (kept,) = (transported(inner, [state], C, group, outside) for C in (nothing, same))
        for name in ("exp_avg", "exp_avg_sq", "row_var"):
            assert name not in state or torch.allclose(kept[name], state[name], atol=1e-6)
        if cls is torch.optim.Adam:
            assert torch.allclose(new["exp_avg_sq"], torch.full((2, 8), 2.0 * bias), rtol=1e-4)
            assert torch.equal(new["exp_avg"], torch.zeros(2, 8))
        else:
            assert torch.allclose(new["row_var"], torch.full((2, 1), 2.0), rtol=1e-4)
            assert torch.equal(new["col_var"], state["col_var"])


@pytest.mark.parametrize("transport", ["rotate", "keep", "reset"])
def test_transport_at_a_refresh(transport):
    (p,) = params = parameters([(24, 40)])
    opt = LowRank(params, torch.optim.AdamW, rank=4, lr=0.1, refresh_every=4, transport=transport)
    train(opt, params, 4)
    before = snapshot(opt)[0]
    train(opt, params, 1, start=4)
    after = opt.state[p]
    assert not torch.equal(before["basis"], after["basis"])
    assert float(after["step"]) == (1 if transport == "reset" else 5)
    R = after["basis"].mT @ p.grad
    kept = 0.9 * before["exp_avg"] + 0.1 * R
    assert torch.allclose(after["exp_avg"], kept, atol=1e-6) == (transport == "keep")
    if transport == "reset":
        assert torch.allclose(after["exp_avg"], 0.1 * R, atol=1e-6)


def test_adaptive_rank_follows_the_gradient_below_its_cap():
    (p,) = params = parameters([(64, 96)])
    opt = LowRank(
        params, torch.optim.AdamW, energy=0.99, max_rank=24, lr=0.1, refresh_every=1,
        random_fraction=0.0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    ranks = []
    for rank in (3, 3, 14, 60, 3):
        p.grad = torch.randn(64, rank, generator=generator) @ torch.randn(
            rank, 96, generator=generator
        )
        opt.step()
        Q = opt.state[p]["basis"]
        ranks.append(Q.shape[1])
        captured = float((Q.mT @ p.grad).norm() ** 2 / p.grad.norm() ** 2)
        assert captured >= 0.99 or Q.shape[1] == 24
        assert opt.state[p]["exp_avg"].shape == (Q.shape[1], 96)
    assert ranks == [8, 8, 16, 24, 8]


def test_basis_of_an_average_finds_what_one_gradient_hides():
    """The signal is constant; noise 10 times as large, of rank 4, is fresh in every step."""
    (p,) = params = parameters([(40, 60)])
    generator = torch.Generator().manual_seed(0)
    u, v = torch.randn(40, 1, generator=generator), torch.randn(1, 60, generator=generator)
    captured = []
    for average in (0.0, 0.95):
        opt = LowRank(
            params, torch.optim.SGD, rank=2, lr=0.0, refresh_every=50, random_fraction=0.0,
            average=average,
        )  # fmt: skip
        for _ in range(101):
            noise = torch.randn(40, 4, generator=generator) @ torch.randn(
                4, 60, generator=generator
            )
            p.grad = u @ v + 5 * noise
            opt.step()
        captured.append(float((opt.state[p]["basis"].mT @ u).norm() / u.norm()))
    assert captured[0] < captured[1]
    assert captured[1] > 0.7


# -- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 200), (200, 64), (64, 8, 5, 5)])
@pytest.mark.parametrize("rank", [1, 8, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_state_is_as_large_as_the_formula_says(shape, rank, dtype):
    """``r·k + 2·r·M`` numbers, by untyped storages, in memory and in the file; and two scalars."""
    (p,) = params = parameters([shape], dtype)
    opt = LowRank(params, torch.optim.AdamW, rank=rank, lr=1e-3, refresh_every=2)
    train(opt, params, 5)
    k, M = 64, 200
    numbers = rank * k + 2 * rank * M
    size = 8 if dtype == torch.float64 else 4
    scalars = 4 + size  # the count of steps and the norm of the residual
    assert opt.state_bytes() == numbers * size + scalars
    assert opt.report().uncompressed_bytes == 2 * k * M * size + 4
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in opt.state[p].values()
        if isinstance(t, torch.Tensor)
    }
    assert sum(storages.values()) == opt.state_bytes()
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    assert file.tell() < opt.state_bytes() + 8000


def peak_bytes(function):
    """Most bytes allocated by torch during a call."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize(("dtype", "rank"), [(torch.float32, 64), (torch.bfloat16, 32)])
@pytest.mark.parametrize("shape", [(512, 512), (512, 1408), (1408, 512)])
def test_a_step_needs_less_than_one_weight_beyond_the_state(monkeypatch, dtype, rank, shape):
    monkeypatch.setattr("lowrank.optim._chunks.TEMPORARY", 0)
    params = parameters([shape] * 3, dtype)
    opt = LowRank(params, torch.optim.AdamW, rank=rank, lr=1e-3, refresh_every=6, weight_decay=0.1)
    set_gradients(params, 0)
    weight = params[0].numel() * params[0].element_size()
    first = peak_bytes(opt.step)
    assert first - opt.state_bytes() < 1.05 * weight
    for _ in range(7):
        assert peak_bytes(opt.step) < 1.05 * weight


def test_state_dtype():
    (p,) = params = parameters([(24, 40)], torch.bfloat16)
    opt = LowRank(params, torch.optim.AdamW, rank=4, lr=0.1, state_dtype=torch.bfloat16)
    train(opt, params, 3)
    assert opt.state[p]["exp_avg"].dtype == torch.bfloat16
    assert opt.state[p]["basis"].dtype == torch.float32
    assert opt.state_bytes() == 24 * 4 * 4 + 2 * 4 * 40 * 2 + 8


def test_half_precision_weights_are_rounded_once_a_step():
    """The step in single precision, rounded to bfloat16, in every entry."""
    (p,), (q,) = parameters([(24, 200)], torch.bfloat16), parameters([(24, 200)], torch.bfloat16)
    q.data = q.data.float()
    options = {"rank": 4, "lr": 0.02, "weight_decay": 0.1}
    half, single = (LowRank([x], torch.optim.AdamW, **options) for x in (p, q))
    set_gradients([p], 0)
    q.grad = p.grad.float()
    half.step()
    single.step()
    error = (p.detach().float() - q.detach()).abs()
    assert bool((error <= 1.01 * 2.0**-8 * q.detach().abs() + 1e-6).all())


def test_budget_in_bytes():
    params = parameters([(64, 100), (100, 300), (64,)])
    budget = 40_000
    opt = LowRank(params, torch.optim.AdamW, budget_bytes=budget, lr=0.1)
    train(opt, params, 2)
    used = sum(row.bytes for row in opt.report().rows[:2])
    assert 0.85 * budget < used <= budget + 2 * 8
    with pytest.raises(ValueError, match="`budget_bytes` must be at least"):
        LowRank(parameters([(64, 100)]), torch.optim.AdamW, budget_bytes=100)


# -- checkpoints --------------------------------------------------------------------------------

RESUMED = [
    (dtype, options)
    for dtype in (torch.float32, torch.bfloat16)
    for options in (
        {"rank": 6},
        {"energy": 0.9, "max_rank": 12},
        {"rank": 6, "warm_start": True, "average": 0.5, "transport": "reset"},
    )
]


def resume(folder):
    for number, (dtype, options) in enumerate(RESUMED):
        params = parameters(dtype=dtype)
        opt = LowRank(params, torch.optim.AdamW, lr=0.1, refresh_every=4, **options)
        saved = torch.load(folder / f"{number}.pt", weights_only=True)
        for p, w in zip(params, saved["weights"], strict=True):
            p.data.copy_(w)
        opt.load_state_dict(saved["opt"])
        train(opt, params, 9, start=6)
        torch.save({"weights": weights(params), "opt": opt.state_dict()}, folder / f"{number}.pt")


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """Where checkpoints are that a new process went on from, and what went on in this one."""
    folder, here = tmp_path_factory.mktemp("resumed"), []
    for number, (dtype, options) in enumerate(RESUMED):
        params = parameters(dtype=dtype)
        opt = LowRank(params, torch.optim.AdamW, lr=0.1, refresh_every=4, **options)
        train(opt, params, 6)
        saved = {"weights": weights(params), "opt": opt.state_dict()}
        torch.save(saved, folder / f"{number}.pt")
        train(opt, params, 9, start=6)
        here.append((params, opt))
    process = multiprocessing.get_context("forkserver").Process(target=resume, args=(folder,))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    return folder, here


@pytest.mark.parametrize("number", range(len(RESUMED)))
def test_resume_in_a_new_process_is_exact(resumed, number):
    """Across refreshes, bit by bit, with ``weights_only=True``."""
    folder, here = resumed
    params, opt = here[number]
    saved = torch.load(folder / f"{number}.pt", weights_only=True)
    assert equal(params, saved["weights"])
    same_state(opt.state_dict()["state"], saved["opt"]["state"])


def test_loading_into_an_optimizer_that_stepped_or_never_did_is_the_same():
    params, fresh, used = (parameters(dtype=torch.bfloat16) for _ in range(3))
    options = {"rank": 4, "lr": 0.1, "refresh_every": 3}
    opt, one, two = (LowRank(x, torch.optim.AdamW, **options) for x in (params, fresh, used))
    train(opt, params, 5)
    train(two, used, 3)
    for other in (one, two):
        other.load_state_dict(opt.state_dict())
        same_state(other.state_dict()["state"], opt.state_dict()["state"])
    assert one.state[fresh[0]]["basis"].dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 5}, "rank 4 in the state and 5 here"),
        ({"shapes": [(20, 40), *SHAPES[1:]]}, "24 rows in the state"),
        ({"shapes": [(24, 44), *SHAPES[1:]]}, r"needs \(4, 44\)"),
        ({"rank": None}, "compressed in the state, but not compressed here"),
        ({"shapes": [*SHAPES[:4], (30,)]}, r"has shape \(24,\) in the state"),
        ({"shapes": SHAPES[:3]}, "groups of"),
        ({"cls": torch.optim.SGD}, "AdamW"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_whole(change, message):
    params = parameters()
    opt = LowRank(params, torch.optim.AdamW, rank=4, lr=0.1)
    train(opt, params, 2)
    others = parameters(change.get("shapes", SHAPES))
    other = LowRank(
        others, change.get("cls", torch.optim.AdamW), rank=change.get("rank", 4), lr=0.1
    )
    train(other, others, 1)
    before = snapshot(other)
    with pytest.raises(ValueError, match=message):
        other.load_state_dict(opt.state_dict())
    same_state(snapshot(other), before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles(duplicate):
    params = parameters()
    opt = LowRank(params, torch.optim.AdamW, rank=4, lr=0.1, refresh_every=2)
    train(opt, params, 3)
    other = duplicate(opt)
    copies = [p for group in other.param_groups for p in group["params"]]
    train(opt, params, 3, start=3)
    train(other, copies, 3, start=3)
    assert equal(params, copies)


def test_groups_added_later():
    params = parameters()
    opt = LowRank(params[:1], torch.optim.AdamW, rank=4, lr=0.1)
    train(opt, params, 2)
    opt.add_param_group({"params": params[1:], "rank": 3})
    start = weights(params)
    train(opt, params, 2, start=2)
    assert not any(torch.equal(p, w) for p, w in zip(params, start, strict=True))
    assert opt.state[params[1]]["basis"].shape == (24, 3)
    assert opt.state[params[0]]["basis"].shape == (24, 4)


# -- gradients that are not finite -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("which", "step", "bad"),
    [
        (which, step, (math.nan, math.inf, -math.inf)[(which + step) % 3])
        for which in range(len(SHAPES))
        for step in range(4)
    ],
)
def test_nothing_is_touched_by_a_bad_gradient(which, bad, step):
    """In the first step, between refreshes and at one; then training goes on as if it never was."""
    params, twins = parameters(), parameters()
    opt, twin = (
        LowRank(x, torch.optim.AdamW, rank=4, lr=0.1, refresh_every=3) for x in (params, twins)
    )
    train(opt, params, step)
    train(twin, twins, step)
    start, before = weights(params), snapshot(opt)
    set_gradients(params, 99)
    params[which].grad.view(-1)[3] = bad
    opt.step()
    assert equal(params, start)
    same_state(snapshot(opt), before)
    assert opt.skipped_steps == 1
    train(opt, params, 2, start=step)
    train(twin, twins, 2, start=step)
    assert equal(params, twins)
    assert LowRank(parameters(), torch.optim.AdamW, rank=4).skipped_steps == 0


def test_raise_names_the_parameters():
    params = parameters(SHAPES[:3])
    named = [(f"layer{i}", p) for i, p in enumerate(params)]
    opt = LowRank(named, torch.optim.AdamW, rank=4, nonfinite="raise")
    set_gradients(params, 0)
    params[1].grad[0, 0] = math.nan
    start = weights(params)
    with pytest.raises(FloatingPointError, match="'layer1'"):
        opt.step()
    assert equal(params, start)
    assert not opt.state


@pytest.mark.parametrize(("nonfinite", "expected"), [("skip", 1), ("raise", 1), ("ignore", 0)])
def test_host_reads_of_a_step(nonfinite, expected):
    params = parameters()
    opt = LowRank(params, torch.optim.AdamW, rank=4, lr=0.1, nonfinite=nonfinite, foreach=True)
    train(opt, params, 2)
    set_gradients(params, 2)
    # the inner optimizer reads its count of steps, which is on the host
    inner = torch.optim.AdamW(parameters(), lr=0.1, foreach=True)
    count, _ = reads(opt.step)
    theirs = reads(lambda: None)[0]
    del inner
    assert count - theirs - _counts_of_steps(params, opt) == expected


def _counts_of_steps(params, opt):
    """Reads of the inner optimizers alone: of Adam's counts, which are tensors on the host."""
    nothing = LowRank(params, torch.optim.AdamW, rank=4, lr=0.1, nonfinite="ignore", foreach=True)
    nothing.load_state_dict(opt.state_dict())
    return reads(nothing.step)[0]


@pytest.mark.parametrize("clip", [False, True])
def test_grad_scaler(clip):
    """A GradScaler skips the step of a gradient that overflowed, as with torch's optimizers."""
    params, twins = parameters(), parameters()
    options = {"rank": 4, "lr": 0.1, "refresh_every": 3}
    opt, twin = (LowRank(x, torch.optim.AdamW, **options) for x in (params, twins))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        set_gradients(params, step)
        bad = step == 1
        for p in params:
            p.grad *= scaler.get_scale()
        if bad:
            params[0].grad[0, 0] = math.inf
        start = weights(params)
        scaler.scale(torch.zeros(()))
        if clip:
            scaler.unscale_(opt)
        scaler.step(opt)
        scaler.update()
        if bad:
            assert equal(params, start)
            continue
        set_gradients(twins, step)
        twin.step()
        for p, q in zip(params, twins, strict=True):
            assert torch.allclose(p, q, atol=1e-5)
    assert opt.skipped_steps == 0  # it was not called
    assert scaler.get_scale() == 512.0


def test_an_exception_in_the_middle_leaves_every_weight_whole(monkeypatch):
    params = parameters()
    opt = LowRank(params, torch.optim.AdamW, rank=4, lr=0.1, refresh_every=2)
    train(opt, params, 3)
    inner_step, message = torch.optim.AdamW.step, ("out of memory",)

    def fails(self, closure=None):
        inner_step(self, closure)
        raise RuntimeError(*message)

    monkeypatch.setattr(torch.optim.AdamW, "step", fails)
    start = weights(params)
    set_gradients(params, 3)
    with pytest.raises(RuntimeError, match="out of memory"):
        opt.step()
    assert equal(params[:4], start[:4])
    assert [p.shape for p in params] == [torch.Size(s) for s in SHAPES]
    monkeypatch.undo()
    train(opt, params, 2, start=4)


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 0}, ValueError, "`rank` must be at least 1"),
        ({"rank": "4"}, TypeError, "`rank` must be an integer"),
        ({"rank": 4, "residual": "all"}, ValueError, "`residual` must be one of"),
        ({"rank": 4, "transport": "move"}, ValueError, "`transport` must be one of"),
        ({"rank": 4, "side": "up"}, ValueError, "`side` must be one of"),
        ({"rank": 4, "refresh_every": 0}, ValueError, "`refresh_every` must be at least 1"),
        ({"rank": 4, "random_fraction": 2.0}, ValueError, "`random_fraction`"),
        ({"rank": 4, "average": 1.0}, ValueError, "`average`"),
        ({"rank": 4, "nonfinite": "no"}, ValueError, "`nonfinite` must be"),
        ({"rank": 4, "state_dtype": torch.int32}, ValueError, "`state_dtype` must be one of"),
        ({"rank": 4, "refresh_evry": 3}, TypeError, "refresh_evry"),
        ({"energy": 2.0}, ValueError, "`energy` must lie"),
    ],
)
def test_options_out_of_range(options, error, message):
    with pytest.raises(error, match=message):
        LowRank(parameters(), torch.optim.AdamW, **options)
    own = {key: value for key, value in options.items() if key not in ("nonfinite", "refresh_evry")}
    if own == options:
        with pytest.raises(error, match=message):
            LowRank([{"params": parameters(), **own}], torch.optim.AdamW)


def test_sparse_gradients():
    model = torch.nn.Embedding(50, 30, sparse=True)
    opt = LowRank(model.parameters(), torch.optim.AdamW, rank=4)
    model(torch.tensor([3, 5])).sum().backward()
    with pytest.raises(TypeError, match="sparse gradient"):
        opt.step()
    opt = LowRank(model.parameters(), torch.optim.SparseAdam, lr=0.1)
    opt.step()


def test_an_optimizer_that_needs_a_closure():
    with pytest.raises(TypeError, match="LBFGS cannot be wrapped"):
        LowRank(parameters(), torch.optim.LBFGS, rank=4)


@pytest.mark.parametrize("shape", [(24, 40), (16, 8, 3, 3)])
def test_weights_of_another_memory_layout(shape):
    """Transposed or channels-last: the same numbers, in the storage they had."""
    params, others = parameters([shape]), parameters([shape])
    if len(shape) == 2:
        others[0].data = others[0].data.mT.contiguous().mT
    else:
        others[0].data = others[0].data.to(memory_format=torch.channels_last)
    strides, where = others[0].stride(), others[0].data_ptr()
    one, two = (LowRank(x, torch.optim.AdamW, rank=4, lr=0.1) for x in (params, others))
    train(one, params, 3)
    train(two, others, 3)
    assert torch.allclose(params[0], others[0], atol=1e-6)
    assert (others[0].stride(), others[0].data_ptr()) == (strides, where)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 50), (50, 1), ()])
def test_shapes_that_cannot_be_compressed(shape):
    params = parameters([shape, (24, 40)])
    opt = LowRank(params, torch.optim.AdamW, rank=4, lr=0.1)
    train(opt, params, 2)
    assert "basis" not in opt.state.get(params[0], {})


# -- selection ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_selection(tied):
    model = Tiny(tied)
    groups = select(model, rank=4)
    chosen = {name: group["rank"] for group in groups for name in group["param_names"]}
    assert {name for name, rank in chosen.items() if rank} == {"up.weight", "down.weight"}
    assert len(chosen) == len(list(model.parameters()))
    assert select(model, rank=4, exclude="down")[0]["param_names"] == ["up.weight"]
    wide = select(model, rank=4, include=["embedding"])
    assert "embedding.weight" in wide[0]["param_names"]
    one = select(model, rank=4, exclude=lambda _, p: p.shape[0] == 64)
    assert one[0]["param_names"] == ["down.weight"]
    everything = select(model, rank=40)  # more than pays
    assert len(everything) == 1
    assert everything[0]["rank"] is None


def test_selection_of_attention_convolutions_and_frozen_parameters():
    model = torch.nn.ModuleDict(
        {
            "attention": torch.nn.MultiheadAttention(32, 4),
            "convolution": torch.nn.Conv2d(16, 32, 3),
            "classifier": torch.nn.Linear(32, 50),
            "frozen": torch.nn.Linear(32, 32),
        }
    )
    model["frozen"].requires_grad_(False)
    model.positions = torch.nn.Parameter(torch.zeros(1, 50, 32))
    groups = select(model, rank=4, refresh_every=7)
    assert groups[0]["param_names"] == [
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "convolution.weight",
    ]
    assert groups[0]["refresh_every"] == 7
    assert "frozen.weight" not in groups[1]["param_names"]
    opt = LowRank(groups, torch.optim.AdamW, lr=0.1)
    assert opt.param_groups[0]["refresh_every"] == 7


def test_reports_agree_and_print():
    model = Tiny()
    groups = select(model, rank=4)
    opt = LowRank(groups, torch.optim.AdamW, lr=0.1)
    loss_of(model, 0).backward()
    opt.step()
    before, after = groups.report(), opt.report()
    for one, two in zip(before.rows, after.rows, strict=True):
        assert (one.name, one.shape, one.rank) == (two.name, two.shape, two.rank)
        assert 0 <= two.bytes - one.bytes <= 8  # a count of steps, the norm of the residual
        assert 0 <= two.uncompressed_bytes - one.uncompressed_bytes <= 4
    assert after.bytes == opt.state_bytes()
    lines = str(after).splitlines()
    assert lines[0].split() == ["parameter", "shape", "rank", "state", "uncompressed"]
    assert lines[-1].startswith("total")
    assert len(lines) == 2 + len(after.rows)
