"""What LowRankMuon promises beside its dense steps, which stand in test_optim_steps."""

import pytest

torch = pytest.importorskip("torch")

from test_optim import (  # noqa: E402
    parameters,
    set_gradients,
    train,
    weights,
)

from lowrank.optim import LowRankMomentum, LowRankMuon  # noqa: E402
from lowrank.optim._muon import newton_schulz  # noqa: E402


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (24, 24)])
def test_singular_values_become_nearly_one(shape, dtype):
    """Those down to a hundredth of the norm, in bfloat16 too; and nothing is turned."""
    short, long = min(shape), max(shape)
    numbers = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(short, short, generator=numbers, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(long, short, generator=numbers, dtype=torch.float64)).Q
    S = torch.logspace(0, -2, short, dtype=torch.float64)
    X = (U * (S / S.norm())) @ V.T
    half = torch.bfloat16 if dtype == torch.float32 else dtype
    Y = newton_schulz(X.to(half)[None])[0].double()
    coefficients = U.T @ Y @ V
    found = torch.diagonal(coefficients)
    assert 0.6 < float(found.min()) <= float(found.max()) < 1.3
    assert float((coefficients - torch.diag(found)).abs().max()) < (0.1 if half != dtype else 1e-12)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("size", [1e15, 1e-12])
def test_steps_do_not_depend_on_the_size_of_gradients(size, rank):
    def run(factor):
        params = parameters([(24, 40)], torch.float64)
        opt = LowRankMuon(params, rank=rank, lr=0.1)
        for step in range(4):
            set_gradients(params, step)
            params[0].grad *= factor
            opt.step()
        return params[0].detach()

    assert torch.allclose(run(size), run(1.0), atol=1e-9)


def test_rows_columns_and_weights_without_gradients_stay():
    params = parameters([(24, 40), (40, 24), (24, 40)])
    start = weights(params)
    opt = LowRankMuon(params, rank=4, weight_decay=0.0, lr=0.1)
    for step in range(4):
        set_gradients(params, step)
        for p in params[:2]:
            p.grad[3], p.grad[:, 7] = 0.0, 0.0
        params[2].grad.zero_()
        opt.step()
    for p, before in zip(params[:2], start[:2], strict=True):
        assert torch.isfinite(p).all()
        assert float((p.detach()[3] - before[3]).abs().max()) < 1e-6
        assert float((p.detach()[:, 7] - before[:, 7]).abs().max()) < 1e-6
        assert not torch.equal(p[4, :7], before[4, :7])
    assert torch.equal(params[2], start[2])
    set_gradients(params, 9)  # it wakes up
    opt.step()
    assert torch.isfinite(params[2]).all()
    assert not torch.equal(params[2], start[2])


def test_noise_is_stepped_over_and_a_signal_is_not():
    """c of noise is the ratio of a gradient to an average of many; of what repeats, it is one."""
    for noise, least, most in ((1.0, 3.0, 12.0), (0.0, 0.99, 1.35)):
        (p,) = params = parameters([(24, 40)], torch.float64)
        opt = LowRankMuon(params, rank=4, lr=0.1)
        numbers = torch.Generator().manual_seed(1)
        signal = torch.randn(24, 40, generator=numbers, dtype=torch.float64)
        for _ in range(150):
            fresh = torch.randn(24, 40, generator=numbers, dtype=torch.float64)
            p.grad = noise * fresh + (1 - noise) * signal
            opt.step()
        assert least < float(opt.state[p]["ratio"]) < most


@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("rank", [0, 4])
def test_state_is_as_large_as_the_formula_says(state_dtype, rank):
    for shape in [(24, 40), (40, 24), (24, 24)]:
        params = parameters([shape])
        opt = LowRankMuon(params, rank=rank, state_dtype=state_dtype)
        train(opt, params, 3)
        m, n = shape
        size = 4 if state_dtype is None else 2
        assert opt.state_bytes() == size * rank * (m + n) + 4 * (m + 1)
        assert opt.report().uncompressed_bytes == m * n * 4
        assert opt.report().rows[0].rank == rank


def test_the_rest_is_stepped_by_adamw():
    params, others = parameters(), parameters()
    groups = [{"params": params[:1], "rank": 4}, {"params": params[1:], "rank": None, "lr": 0.2}]
    opt = LowRankMuon(groups, lr=0.1, betas=(0.8, 0.9), weight_decay=0.2)
    plain = torch.optim.AdamW(others[1:], lr=0.2, betas=(0.8, 0.9), weight_decay=0.2)
    train(opt, params, 3)
    train(plain, others, 3)
    assert all(torch.equal(p, q) for p, q in zip(params[1:], others[1:], strict=True))
    assert not torch.equal(params[0], others[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"residual": None}, "`residual` is not an option of LowRankMuon"),
        ({"refresh_every": 5}, "`refresh_every` is not an option of LowRankMuon"),
        ({"side": "long"}, "`side` is not an option of LowRankMuon"),
        ({"momentum": 1.0}, "`momentum` must be a number, at least 0 and below 1"),
        ({"beta2": -0.1}, "`beta2` must be a number, at least 0 and below 1"),
        ({"rank": -1}, "`rank` must be at least"),
        ({"rank": 1.5}, "`rank` must be an integer"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        LowRankMuon([{"params": parameters(), "rank": 4, **options}])
    params = parameters()
    opt = LowRankMuon(params, rank=4)
    opt.param_groups[0].update(options)
    if "rank" in options or "momentum" in options or "beta2" in options or "side" in options:
        with pytest.raises((TypeError, ValueError), match=message):
            train(opt, params, 1)


def test_no_momentum_is_for_muon_only():
    with pytest.raises(ValueError, match="`rank` must be at least 1, got 0"):
        LowRankMomentum(parameters(), rank=0)
