"""The optimizer whose moments are factors: against dense formulas, and what it promises."""

import copy
import importlib
import io
import itertools
import math

import pytest

torch = pytest.importorskip("torch")

from pretended import Pretended, pretending, reads  # noqa: E402
from test_optim import (  # noqa: E402
    Tiny,
    equal,
    loss_of,
    parameters,
    peak_bytes,
    same_state,
    set_gradients,
    snapshot,
    train,
    weights,
)

from lowrank.optim import LowRank, LowRankMomentum, LowRankMuon, select  # noqa: E402

BETAS = (0.9, 0.95)
RATE = {"lr": 0.1, "scale": 0.2}


def momentum_of(opt, p, state=None):
    """The first moment, with the shape of the weight."""
    state = opt.state[p] if state is None else state
    M = state["basis"].double() @ state["exp_avg"].double()
    return M if p.flatten(1).shape[0] == M.shape[0] else M.T


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    "shape", [(24, 40), (40, 24), (24, 24), (24, 6, 2, 2), (300, 400), (400, 300)]
)
def test_every_step_against_dense_formulas(shape, every, maximize):
    """In double precision; only the bases are taken from the optimizer."""
    beta, square_beta = BETAS
    lr, scale, decay, eps = 0.1, 0.3, 0.5, 1e-3
    (p,) = params = parameters([shape], torch.float64)
    opt = LowRankMomentum(
        [{"params": params, "maximize": maximize}], rank=4, lr=lr, scale=scale, betas=BETAS,
        eps=eps, weight_decay=decay, refresh_every=every,
    )  # fmt: skip
    flat = p.detach().flatten(1)
    W, M, V = flat.clone(), torch.zeros_like(flat), torch.zeros_like(flat)
    changes = 0
    for step in range(1, 8):
        set_gradients(params, step)
        if step == 5:
            p.grad *= 10.0
        G = p.grad.flatten(1).clone()
        old = opt.state[p]["basis"].clone() if opt.state else None
        opt.step()
        Q = opt.state[p]["basis"]
        changes += old is not None and not torch.equal(old, Q)
        project = (lambda X, Q=Q: Q @ (Q.T @ X)) if W.shape[0] <= W.shape[1] else (
            lambda X, Q=Q: (X @ Q) @ Q.T
        )  # fmt: skip
        after = project(beta * M + (1 - beta) * G)
        U = G + beta / (1 - beta) * (M - after)
        M = after
        V = square_beta * V + (1 - square_beta) * G**2
        mean = V / (1 - square_beta**step)
        tall = W.shape[0] > W.shape[1]
        short, long = (0, 1) if tall else (1, 0)  # the dimensions over which to take means
        a = 1 / (mean.mean(short, keepdim=True).sqrt() + eps)
        b = (mean.mean() / mean.mean(long, keepdim=True)).sqrt()
        spike = (a * G * b).square().mean().sqrt()
        sign = -1.0 if maximize else 1.0
        W = (1 - lr * decay) * W - sign * lr * scale / max(1.0, float(spike)) * a * U * b
        assert torch.allclose(p.detach().flatten(1), W, atol=1e-11)
        assert torch.allclose(momentum_of(opt, p), M, atol=1e-12)
        assert torch.equal(p.grad.flatten(1), G)
    assert changes == (6 if every == 1 else 2)


def signs(shape, generator):
    return torch.randint(2, shape, generator=generator).double() * 2 - 1


@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_of_every_gradient_the_steps_add_up_to_the_whole(shape, state_dtype):
    """``Σ U = Σ G − β/(1 − β) M``, whatever the basis is, and however the momentum is rounded.

    Gradients of signs have equal means of squares, so that no row or column is scaled.
    """
    (p,) = parameters([shape], torch.float64)
    start, total = p.detach().clone(), torch.zeros(shape, dtype=torch.float64)
    opt = LowRankMomentum(
        [p], rank=3, eps=0.0, weight_decay=0.0, refresh_every=2, state_dtype=state_dtype, **RATE
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        p.grad = signs(shape, generator)
        total += p.grad
        opt.step()
        sum_of_steps = (start - p.detach()) / 0.02
        left = 9.0 * momentum_of(opt, p)
        assert torch.allclose(sum_of_steps, total - left, atol=1e-10)
    assert torch.linalg.norm(left) > 1.0


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_a_momentum_that_fits_is_that_of_adam(shape):
    """Where the gradients stay in a space of r dimensions nothing is cut."""
    (p,) = parameters([shape], torch.float64)
    opt = LowRankMomentum(
        [p], rank=2, eps=0.0, weight_decay=0.0, betas=BETAS, refresh_every=2, **RATE
    )
    generator = torch.Generator().manual_seed(1)
    short = signs((24, 1), generator)
    mean = torch.zeros(shape, dtype=torch.float64)
    for _ in range(8):
        G = short @ signs((1, 40), generator)
        p.grad = G if shape[0] == 24 else G.T.contiguous()
        before = p.detach().clone()
        opt.step()
        mean = 0.9 * mean + 0.1 * p.grad
        assert torch.allclose(before - p.detach(), 0.02 * mean, atol=1e-12)


def test_the_basis_follows_what_the_gradients_have_in_common():
    """Signal of rank 3 with a thirteenth of the energy of the noise, but the same in all.

    The basis of a single gradient has 0.29 of it.
    """
    (p,) = parameters([(40, 60)])
    opt = LowRankMomentum([p], rank=3, refresh_every=2, **RATE)
    generator = torch.Generator().manual_seed(0)

    def captured():
        Q = opt.state[p]["basis"]
        return float(torch.linalg.norm(Q.T @ U) ** 2 / 3)

    for turn in range(2):  # the signal turns, and the basis with it
        U = torch.linalg.qr(torch.randn(40, 3, generator=generator))[0]
        signal = U @ torch.randn(3, 60, generator=generator)
        for _ in range(60):
            p.grad = signal + torch.randn(40, 60, generator=generator)
            opt.step()
        assert captured() > 0.93, turn


@pytest.mark.parametrize("size", [1e15, 1e-15])
def test_steps_do_not_depend_on_the_size_of_gradients(size):
    def run(factor):
        params = parameters([(24, 40)])
        opt = LowRankMomentum(params, rank=4, eps=0.0, refresh_every=1, **RATE)
        for step in range(4):
            set_gradients(params, step)
            params[0].grad *= factor
            opt.step()
        return params[0].detach()

    assert torch.allclose(run(size), run(1.0), atol=1e-4)


@pytest.mark.parametrize("entry", [False, True])
@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.9, 0.999)])
def test_one_large_gradient_moves_the_weight_no_further_than_others(betas, entry):
    """Or one large entry, from which squares of rank 1 conclude that all others are tiny."""
    (p,) = params = parameters([(24, 40)])
    opt = LowRankMomentum(params, rank=4, betas=betas, weight_decay=0.0, **RATE)
    for step in range(20):
        set_gradients(params, step)
        if entry:
            p.grad[0, 0] = 1e4
        else:
            p.grad *= 1e6 if step == 15 else 1.0
        before = p.detach().clone()
        opt.step()
        root_mean_square = (p.detach() - before).square().mean().sqrt()
        assert root_mean_square < 0.02 * 2.0


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
@pytest.mark.parametrize("size", [1e-9, 1e-13, 1e-18, 1e-20, 1e-30])
@pytest.mark.parametrize("which", [0, 1])
def test_rounding_errors_of_large_gradients_do_not_move_what_has_small_ones(shape, size, which):
    (p,) = params = parameters([shape])
    opt = LowRankMomentum(params, rank=4, weight_decay=0.0, **RATE)
    for step in range(12):
        set_gradients(params, step)
        p.grad *= 100.0
        p.grad.select(which, 5).mul_(size)
        before = p.detach().clone()
        opt.step()
        moved = (p.detach() - before).select(which, 5).square().mean().sqrt()
        assert moved <= 0.02 * 1.5


def test_float16_state_of_large_gradients():
    params = parameters([(24, 40)])
    opt = LowRankMomentum(params, rank=4, state_dtype=torch.float16)
    for step in range(3):
        set_gradients(params, step)
        params[0].grad *= 1e6
        opt.step()
    assert torch.isfinite(params[0]).all()


def test_rows_columns_and_weights_without_gradients_stay():
    """And are not divided by zero, even without `eps`."""
    params = parameters([(24, 40), (40, 24), (24, 40)])
    start = weights(params)
    opt = LowRankMomentum(params, rank=4, eps=0.0, weight_decay=0.0, refresh_every=1, **RATE)
    for step in range(4):
        set_gradients(params, step)
        for p in params[:2]:
            p.grad[3], p.grad[:, 7] = 0.0, 0.0
        params[2].grad.zero_()
        opt.step()
    for p, before in zip(params[:2], start[:2], strict=True):
        assert torch.isfinite(p).all()
        assert torch.equal(p[3], before[3])
        assert torch.equal(p[:, 7], before[:, 7])
        assert not torch.equal(p[4, :7], before[4, :7])
    assert torch.equal(params[2], start[2])
    set_gradients(params, 9)  # it wakes up
    opt.step()
    assert torch.isfinite(params[2]).all()
    assert not torch.equal(params[2], start[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype):
    """The step of single precision, rounded once; moments are single."""
    half, single = parameters([(40, 72)], dtype), parameters([(40, 72)], dtype)
    single = [torch.nn.Parameter(p.detach().float()) for p in single]
    options = {"rank": 4, "weight_decay": 0.0, "refresh_every": 1, **RATE}
    one, two = LowRankMomentum(half, **options), LowRankMomentum(single, **options)
    for step in range(3):
        set_gradients(half, step)
        single[0].data = half[0].detach().float()
        single[0].grad = half[0].grad.float()
        one.step()
        two.step()
        assert half[0].dtype == dtype
        assert torch.equal(half[0], single[0].to(dtype)) or torch.allclose(
            half[0].float(), single[0], rtol=torch.finfo(dtype).eps, atol=1e-5
        )
    assert one.state[half[0]]["exp_avg"].dtype == torch.float32


def test_the_rest_is_stepped_by_adamw():
    params, others = parameters(), parameters()
    opt = LowRankMomentum(params, rank=4, lr=0.1, betas=BETAS, weight_decay=0.2)
    plain = torch.optim.AdamW(others, lr=0.1, betas=BETAS, weight_decay=0.2)
    for each, those in ((opt, params), (plain, others)):
        train(each, those, 3)
    assert torch.equal(params[-1], others[-1])
    assert not torch.equal(params[0], others[0])


def test_weights_of_one_size_step_as_they_would_alone():
    together, alone = parameters([(24, 40)] * 3), parameters([(24, 40)] * 3)
    options = {"rank": 4, "refresh_every": 1, **RATE}
    one = LowRankMomentum(together, **options)
    groups = [{"params": [p]} for p in alone]
    two = LowRankMomentum(groups, **options)
    train(one, together, 4)
    train(two, alone, 4)
    for p, q in zip(together, alone, strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_bases_change_in_turn():
    params = parameters([(24, 40)] * 4)
    opt = LowRankMomentum(params, rank=4, refresh_every=4, **RATE)
    changes = {p: [] for p in params}
    for step in range(12):
        old = {p: opt.state[p]["basis"].clone() for p in params if opt.state}
        train(opt, params, 1, start=step)
        for p, basis in old.items():
            if not torch.equal(basis, opt.state[p]["basis"]):
                changes[p].append(step)
    for steps in changes.values():
        assert all(later - first == 4 for first, later in itertools.pairwise(steps))
    assert sorted(each[0] % 4 for each in changes.values()) == [0, 1, 2, 3]


@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
def test_state_is_as_large_as_the_formula_says(state_dtype):
    for shape in [(24, 40), (40, 24), (24, 24)]:
        (p,) = params = parameters([shape])
        opt = LowRankMomentum(params, rank=4, state_dtype=state_dtype)
        train(opt, params, 3)
        m, n = shape
        size = 4 if state_dtype is None else 2
        assert opt.state_bytes() == 4 * (4 * min(shape) + m + n) + size * 4 * max(shape)
        assert opt.report().uncompressed_bytes == 2 * m * n * 4
        assert opt.report().rows[0].rank == 4
        assert p.grad is not None


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64])
def test_budget_in_bytes(dtype):
    params = parameters([(40, 72), (72, 40), (24, 24)])
    for budget in (4_000, 6_000, 12_000):
        opt = LowRankMomentum(params, budget_bytes=budget, state_dtype=dtype)
        train(opt, params, 2)
        assert budget - 8 * (3 * 112 + 48) < opt.state_bytes() <= budget


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(512, 700), (700, 512), (512, 64, 3, 3)])
def test_a_step_needs_less_than_one_weight_beyond_the_state(monkeypatch, shape, dtype):
    monkeypatch.setattr("lowrank.optim._chunks.TEMPORARY", 0)
    (p,) = params = parameters([shape], dtype)
    rank = 512 // (16 if dtype == torch.float32 else 32)
    opt = LowRankMomentum(params, rank=rank, refresh_every=1, **RATE)
    train(opt, params, 2)
    assert peak_bytes(opt.step) < p.numel() * p.element_size()


@pytest.mark.parametrize(("nonfinite", "expected"), [("skip", 1), ("ignore", 0)])
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (LowRankMomentum, {"refresh_every": 1}),
        (LowRankMomentum, {"refresh_every": 1000}),
        (LowRankMuon, {}),
    ],
)
def test_host_reads_of_a_step(nonfinite, expected, cls, options):
    """A new basis needs none."""
    with pretending():
        params = [torch.nn.Parameter(Pretended(p.data)) for p in parameters([(40, 72), (24, 24)])]
        opt = cls(params, rank=4, nonfinite=nonfinite, **options)
        for _ in range(2):
            for p in params:
                p.grad = torch.randn_like(p)
            count, _ = reads(opt.step)
    assert count == expected


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("cls", [LowRankMomentum, LowRankMuon])
def test_nothing_is_touched_by_a_bad_gradient(cls, bad, step):
    params = parameters()
    opt = cls(params, rank=4)
    train(opt, params, step)
    before, state = weights(params), snapshot(opt)
    set_gradients(params, step)
    params[1].grad[0, 0] = bad
    opt.step()
    assert equal(weights(params), before)
    same_state(snapshot(opt), state)
    assert opt.skipped_steps == 1


@pytest.mark.parametrize("cls", [LowRankMomentum, LowRankMuon])
def test_an_exception_leaves_weight_and_state_as_they_were(monkeypatch, cls):
    (p,) = params = parameters([(24, 40)])
    opt = cls(params, rank=4)
    train(opt, params, 2)
    before, state = weights(params), snapshot(opt)
    set_gradients(params, 2)

    def fail(*_, **__):
        message = "no memory"
        raise RuntimeError(message)

    monkeypatch.setattr("lowrank.optim._stacks.add_to_weights", fail)
    if hasattr(importlib.import_module(cls.__module__), "add_to_weights"):
        monkeypatch.setattr(f"{cls.__module__}.add_to_weights", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        opt.step()
    assert torch.equal(p, before[0])
    same_state(snapshot(opt), state)


@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(
    ("cls", "options"), [(LowRankMomentum, {"refresh_every": 3}), (LowRankMuon, {})]
)
def test_resume_is_exact(cls, options, state_dtype):
    def built():
        params = parameters()
        return params, cls(params, rank=4, state_dtype=state_dtype, **options, **RATE)

    params, opt = built()
    train(opt, params, 4)
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    others, resumed = built()
    for p, q in zip(others, params, strict=True):
        p.data.copy_(q.data)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(opt, params, 6, start=4)
    train(resumed, others, 6, start=4)
    assert equal(weights(params), weights(others))
    same_state(snapshot(opt), snapshot(resumed))


def test_steps_in_the_backward_pass_equal_the_ordinary_ones():
    def run(*, in_backward):
        torch.manual_seed(0)
        model = Tiny(tied=False)
        opt = LowRankMomentum(select(model, rank=4), lr=1e-2, refresh_every=3)
        if in_backward:
            opt.step_in_backward()
        for step in range(8):
            loss_of(model, step).backward()
            opt.step()
            opt.zero_grad()
        return list(model.parameters()), snapshot(opt)

    (one, first), (two, second) = run(in_backward=False), run(in_backward=True)
    assert equal(one, two)
    same_state(first, second)


def test_copies_step_alike():
    params = parameters()
    opt = LowRankMomentum(params, rank=4)
    train(opt, params, 2)
    other = copy.deepcopy(opt)
    own = list(other._names())
    train(opt, params, 2, start=2)
    train(other, own, 2, start=2)
    assert equal(weights(params), weights(own))


def test_states_of_the_two_optimizers_are_not_mixed_up():
    params = parameters()
    one, two = LowRank(params, rank=4), LowRankMomentum(params, rank=4)
    for here, there in ((one, two), (two, one)):
        with pytest.raises(ValueError, match="the state is of"):
            here.load_state_dict(there.state_dict())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"betas": (0.9,)}, ValueError, "beta"),
        ({"residual": None}, ValueError, "`residual` is not an option of LowRankMomentum"),
        ({"max_rank": 2}, ValueError, "`max_rank` is not an option of LowRankMomentum"),
        ({"energy": 0.9}, ValueError, "`energy` is not an option of LowRankMomentum"),
        ({"amsgrad": True}, ValueError, "`amsgrad` is not an option of LowRankMomentum"),
        ({"refresh_every": 0}, ValueError, "refresh_every"),
        ({"rank": -1}, ValueError, "rank"),
        ({"side": "up"}, ValueError, "side"),
        ({"betas": (1.0, 0.9)}, ValueError, "beta"),
    ],
)
def test_groups_that_ask_for_what_there_is_not(options, error, message):
    with pytest.raises(error, match=message):
        LowRankMomentum([{"params": parameters(), "rank": 4, **options}])


def test_a_learning_rate_that_is_a_tensor():
    params, others = parameters(), parameters()
    train(LowRankMomentum(params, rank=4, lr=torch.tensor(0.1)), params, 3)
    train(LowRankMomentum(others, rank=4, lr=0.1), others, 3)
    for p, q in zip(params, others, strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_it_learns_where_the_noise_of_gradients_is_larger_than_the_signal():
    """And lies in other directions: there a basis of one gradient holds noise only.

    After Y. He et al., Subspace optimization for large language models, 2024, arXiv:2410.11289.
    """
    n, r = 10, 4
    generator = torch.Generator().manual_seed(0)
    B = torch.zeros(n, n)
    B[: n - r, : n - r] = torch.randn(n - r, n - r, generator=generator)
    noise = torch.zeros(n, n)
    noise[n - r :, n - r :] = torch.linalg.qr(torch.randn(r, r, generator=generator))[0]
    noise *= 3.0 * torch.linalg.matrix_norm(B, ord=2)
    X = torch.nn.Parameter(torch.zeros(n, n))
    opt = LowRankMomentum([X], rank=r, lr=0.05, weight_decay=0.0)
    for step in range(600):
        sign = 1.0 if torch.rand((), generator=generator) < 0.5 else -1.0
        X.grad = torch.cat([X.detach()[: n - r], torch.zeros(r, n)]) + B + sign * noise
        opt.param_groups[0]["lr"] = 0.05 * (1 - step / 600)
        opt.step()
    top = X.detach()[: n - r]
    gap = 0.5 * top.square().sum() + (X.detach() * B).sum() + 0.5 * B.square().sum()
    assert gap < 0.05


def test_the_basis_is_one_step_of_subspace_iteration():
    (p,) = params = parameters([(24, 40)], torch.float64)
    opt = LowRankMomentum(params, rank=4, betas=(0.7, 0.95), **RATE)
    train(opt, params, 3)
    for step in range(3, 6):
        old = opt.state[p]["basis"]
        M = old @ opt.state[p]["exp_avg"]
        set_gradients(params, step)
        opt.step()
        Q, D = opt.state[p]["basis"], 0.7 * M + 0.3 * p.grad
        wanted = torch.linalg.qr(D @ M.T @ old)[0]
        assert torch.allclose(Q @ Q.T, wanted @ wanted.T, atol=1e-10)


def test_the_first_basis_is_of_the_gradient_alone():
    (p,) = params = parameters([(24, 40)], torch.float64)
    opt = LowRankMomentum(params, rank=4)
    generator = torch.Generator().manual_seed(0)
    p.grad = (
        torch.randn(24, 4, generator=generator) @ torch.randn(4, 40, generator=generator)
    ).double()
    opt.step()
    Q = opt.state[p]["basis"]
    assert torch.allclose(Q @ (Q.T @ p.grad), p.grad, atol=1e-5)


def test_the_basis_of_tiny_gradients():
    def projector(factor):
        (p,) = params = parameters([(24, 40)])
        opt = LowRankMomentum(params, rank=4)
        for step in range(4):
            set_gradients(params, step)
            p.grad *= factor
            opt.step()
        Q = opt.state[p]["basis"]
        return Q @ Q.T

    assert torch.allclose(projector(1e-22), projector(1.0), atol=1e-4)


def test_a_basis_stays_while_there_is_no_momentum():
    (p,) = params = parameters([(24, 40)])
    opt = LowRankMomentum(params, rank=4)
    p.grad = torch.zeros_like(p)
    opt.step()
    Q = opt.state[p]["basis"] = torch.linalg.qr(torch.randn(24, 4))[0]
    opt.step()
    assert torch.equal(opt.state[p]["basis"], Q)


def test_seed():
    def basis(seed):
        (p,) = params = parameters([(24, 40)])
        opt = LowRankMomentum(params, rank=4, seed=seed)
        train(opt, params, 1)
        return opt.state[p]["basis"]

    assert torch.equal(basis(1), basis(1))
    assert not torch.equal(basis(1), basis(2))


@pytest.mark.parametrize(("side", "k"), [(None, 24), ("long", 40), ("left", 40), ("right", 24)])
def test_side(side, k):
    (p,) = params = parameters([(40, 24)])
    opt = LowRankMomentum(params, rank=4, side=side)
    train(opt, params, 2)
    assert opt.state[p]["basis"].shape == (k, 4)
    assert opt.state[p]["row_sq"].shape == (k,)


def test_options_reach_adamw():
    assert LowRankMomentum(parameters(), foreach=False).param_groups[0]["foreach"] is False
    assert LowRankMomentum(parameters(), fused=True).param_groups[0]["fused"] is True


@pytest.mark.parametrize("bad", [{"betas": (1.0, 0.9)}, {"betas": (0.9, 1.0)}, {"energy": 0.9}])
def test_a_refused_group_is_not_added(bad):
    opt, more = LowRankMomentum(parameters(), rank=4), parameters([(24, 40)])
    with pytest.raises(ValueError, match=r"betas|energy"):
        opt.add_param_group({"params": more, **bad})
    assert len(opt.param_groups) == 1
    opt.add_param_group({"params": more})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("col_sq", torch.ones(1)),
        ("row_sq", torch.ones(25)),
        ("exp_avg", torch.ones(4)),
        ("exp_avg", torch.ones(1, 40)),
        ("exp_avg", None),
        ("step", None),
    ],
)
def test_a_state_of_other_shapes_is_refused(key, value):
    params = parameters([(24, 40)])
    opt = LowRankMomentum(params, rank=4)
    train(opt, params, 2)
    saved = copy.deepcopy(opt.state_dict())
    if value is None:
        del saved["state"][0][key]
    else:
        saved["state"][0][key] = value
    before = snapshot(opt)
    with pytest.raises(
        ValueError, match=r"the state of parameter 0 does not fit: .*must have shape|has shape"
    ):
        opt.load_state_dict(saved)
    same_state(snapshot(opt), before)


def test_a_state_that_was_handed_out_does_not_change():
    params = parameters([(24, 40)])
    opt = LowRankMomentum(params, rank=4)
    train(opt, params, 2)
    handed = opt.state_dict()["state"][0]
    copied = copy.deepcopy(handed)
    held = dict(handed)
    train(opt, params, 1, start=2)
    for name, value in copied.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(held[name]))


def test_what_would_cost_more_is_left_to_adamw():
    params, others = parameters([(2, 100)]), parameters([(2, 100)])
    with pytest.warns(UserWarning, match="no parameter is compressed"):
        train(LowRankMomentum(params, rank=3, side="long", lr=0.1), params, 2)
    train(torch.optim.AdamW(others, lr=0.1), others, 2)
    assert torch.equal(params[0], others[0])


def test_batches_are_as_large_as_their_temporaries_allow(monkeypatch):
    monkeypatch.setattr("lowrank.optim._chunks.TEMPORARY", 0)
    params = parameters([(64, 8192)] * 12)
    opt = LowRankMomentum(params, rank=2, side="long", **RATE)
    train(opt, params, 2)
    assert peak_bytes(opt.step) < 1.1 * params[0].numel() * 4
