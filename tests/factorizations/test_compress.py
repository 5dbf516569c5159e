"""The subspace of the compressor, on every array library."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matrices import adjoint, defect, gaussian, with_spectrum

from lowrank.compress import Subspace, transport_squares


def decaying(shape, dtype, seed=0):
    return with_spectrum(0.7 ** np.arange(min(shape)), shape, dtype, seed=seed)


@pytest.mark.parametrize("shape", [(40, 90), (90, 40), (50, 50)])
@pytest.mark.parametrize("random_fraction", [0.0, 0.5, 1.0])
def test_basis_coordinates_and_lift(backend, dtype, shape, random_fraction):
    """The basis is of the short side, `project` gives r×M coordinates, `lift` leads back."""
    A = decaying(shape, dtype)
    G = backend.asarray(A)
    space = Subspace(rank=12, random_fraction=random_fraction).refresh(G, step=3)
    Q, R, L = (
        backend.numpy(X) for X in (space.basis, space.project(G), space.lift(space.project(G)))
    )
    k, M = sorted(shape)
    assert Q.shape == (k, 12)
    assert R.shape == (12, M)
    assert defect(Q) < 50 * backend.eps(dtype) * 12**0.5
    P = Q @ adjoint(Q)
    expected = P @ A if shape[0] <= shape[1] else A @ P
    assert np.linalg.norm(L - expected) < 50 * backend.eps(dtype) * np.linalg.norm(A)
    assert np.isclose(np.linalg.norm(R), np.linalg.norm(expected), rtol=1e-4)


def test_captures_what_the_best_basis_does(backend, dtype):
    """At rank 10 of a decaying spectrum, 0.999 of the energy that the SVD captures."""
    A = decaying((60, 150), dtype)
    G = backend.asarray(A)
    best = np.sum(np.linalg.svd(A, compute_uv=False)[:10] ** 2)
    cold = Subspace(rank=10).refresh(G)
    warm = Subspace(rank=10, warm_start=True, basis=cold.basis).refresh(G, step=1)
    for space in (cold, warm):
        assert np.linalg.norm(backend.numpy(space.project(G))) ** 2 > 0.999 * best
    half = Subspace(rank=20, random_fraction=0.5).refresh(G)
    assert np.linalg.norm(backend.numpy(half.project(G))) ** 2 > 0.999 * best
    noise = Subspace(rank=20, random_fraction=1.0).refresh(G)
    assert np.linalg.norm(backend.numpy(noise.project(G))) ** 2 < 0.8 * best


def test_power_iterations_and_oversampling_help():
    A = with_spectrum(1 / np.arange(1, 81), (80, 200), "float64")

    def captured(**options):
        return np.mean(
            [
                np.linalg.norm(Subspace(rank=8, index=i, **options).refresh(A).project(A))
                for i in range(5)
            ]
        )

    assert captured(power_iterations=0, oversampling=0) < captured(power_iterations=0)
    assert (
        captured(power_iterations=0) < captured(power_iterations=1) < captured(power_iterations=3)
    )


def test_random_directions_are_fresh_and_orthogonal_to_the_found():
    A = decaying((50, 80), "float64")
    U = np.linalg.svd(A)[0][:, :6]
    first, second = (
        Subspace(rank=12, random_fraction=0.5).refresh(A, step=s).basis for s in (0, 1)
    )
    for Q in (first, second):
        assert np.linalg.norm(U - Q @ (Q.T @ U)) < 2e-2  # the found half leads
        assert np.linalg.norm(Q[:, 6:].T @ U) < 2e-2
    overlap = np.linalg.norm(first[:, 6:].T @ second[:, 6:]) ** 2 / 6
    assert overlap < 0.5


def test_same_numbers_same_basis(backend):
    """(seed, step, index) and G decide everything; each of them changes something."""
    G = backend.asarray(gaussian((30, 70), "float32"))

    def basis(step=0, **options):
        return backend.numpy(
            Subspace(rank=5, random_fraction=0.5, **options).refresh(G, step=step).basis
        )

    assert np.array_equal(basis(), basis())
    for other in (basis(step=1), basis(seed=1), basis(index=1)):
        assert np.linalg.norm(basis() - other) > 0.1


@pytest.mark.parametrize("shape", [(60, 90), (90, 60)])
@given(rank=st.integers(0, 7), seed=st.integers(0, 2**32 - 1))
def test_replicas_agree_on_rank_deficient_gradients(shape, rank, seed):
    """Two gradients that differ by rounding give one basis, column by column."""
    left, right = (
        gaussian((shape[0], rank), "float32", seed),
        gaussian((rank, shape[1]), "float32", seed + 1),
    )
    G = left @ right
    H = (G * (1 + 1e-7 * gaussian(shape, "float32", seed + 2))).astype("float32")
    one, two = (Subspace(rank=10).refresh(X, step=2).basis for X in (G, H))
    # the leading directions are as stable as their gaps allow; those completed, to rounding
    assert np.all(np.abs(np.sum(one[:, rank:] * two[:, rank:], axis=0)) > 1 - 1e-3)
    assert np.all(np.sum(one * two, axis=0) > 0.9)


def test_a_zero_gradient_keeps_the_basis(backend, dtype):
    G = backend.asarray(decaying((20, 30), dtype))
    zero = backend.asarray(np.zeros((20, 30), dtype))
    for options in (
        {"rank": 5},
        {"rank": 6, "random_fraction": 0.5},
        {"energy": 0.9, "max_rank": 0.9},
    ):
        old = Subspace(**options).refresh(G)
        new = old.refresh(zero, step=1)
        assert np.array_equal(backend.numpy(old.basis), backend.numpy(new.basis))
        first = Subspace(**options).refresh(zero)
        assert defect(backend.numpy(first.basis)) < 100 * backend.eps(dtype)


def test_captured_energy_is_what_was_asked(backend, dtype):
    """Also with random directions; at the cap, the cap is the rank."""
    A = decaying((64, 100), dtype)
    G = backend.asarray(A)
    total = np.linalg.norm(A) ** 2
    for energy in (0.5, 0.9, 0.99):
        for random_fraction in (0.0, 0.5):
            space = Subspace(energy=energy, max_rank=60, random_fraction=random_fraction).refresh(G)
            rank = space.basis.shape[1]
            assert (
                np.linalg.norm(backend.numpy(space.project(G))) ** 2 >= (1 - 1e-5) * energy * total
            )
            assert rank % 8 == 0
            s = np.linalg.svd(A, compute_uv=False) ** 2
            optimal = 1 + int(np.sum(np.cumsum(s) < energy * total))
            assert rank <= (8 + optimal / (1 - random_fraction)) * 1.2 + 1
    capped = Subspace(energy=0.999999, max_rank=5).refresh(G)
    assert capped.basis.shape[1] == 5


def test_an_adaptive_rank_falls_by_more_than_an_eighth_only():
    rng = np.random.default_rng(0)

    def of_rank(r):
        return rng.standard_normal((100, r)) @ rng.standard_normal((r, 200))

    space = Subspace(energy=0.9999, max_rank=100).refresh(of_rank(64))
    assert space.basis.shape[1] == 64
    assert space.refresh(of_rank(56), step=1).basis.shape[1] == 64
    assert space.refresh(of_rank(48), step=1).basis.shape[1] == 48
    assert space.refresh(of_rank(65), step=1).basis.shape[1] == 72


def test_transport(backend, dtype):
    """``C = Q_newᴴ Q_old`` moves coordinates to what they are of in the new basis."""
    A, B = decaying((30, 50), dtype), decaying((30, 50), dtype, seed=5)
    old = Subspace(rank=7).refresh(backend.asarray(A))
    new = Subspace(rank=9).refresh(backend.asarray(B))
    C = backend.numpy(old.transport(new))
    Q, P = backend.numpy(old.basis), backend.numpy(new.basis)
    assert C.shape == (9, 7)
    assert np.linalg.norm(C - adjoint(P) @ Q) < 100 * backend.eps(dtype)


def test_transported_squares_are_those_of_independent_coordinates(backend, dtype):
    """Exact for independent coordinates with these means; unchanged by the identity."""
    rng = np.random.default_rng(0)
    mean, spread = gaussian((4, 6), dtype), rng.uniform(0.5, 2.0, (4, 6))
    C = np.linalg.qr(gaussian((4, 4), dtype, seed=1))[0]
    square = (np.abs(mean) ** 2 + spread).astype(mean.real.dtype)
    X = [backend.asarray(Y) for Y in (C, mean, square)]
    moved = backend.numpy(transport_squares(*X))
    expected = np.abs(C) ** 2 @ spread + np.abs(C @ mean) ** 2
    assert np.allclose(moved, expected, rtol=1e-4)
    same = backend.numpy(transport_squares(backend.asarray(np.eye(4, dtype=dtype)), *X[1:]))
    assert np.allclose(same, square, rtol=1e-4)
    # a direction outside the old basis takes the mean square outside
    nowhere = backend.asarray(np.zeros((2, 4), dtype))
    outside = backend.asarray(np.arange(6, dtype=mean.real.dtype))
    assert np.allclose(backend.numpy(transport_squares(nowhere, *X[1:], outside)), np.arange(6))


def test_half_precision_is_computed_in_single():
    torch = pytest.importorskip("torch")
    G = torch.asarray(decaying((50, 3000), "float32")).to(torch.bfloat16)
    space = Subspace(rank=10).refresh(G)
    assert space.basis.dtype == torch.float32
    R = space.project(G)
    assert R.dtype == torch.float32
    assert torch.linalg.norm(R - space.basis.mT @ G.float()) < 1e-5 * torch.linalg.norm(R)
    assert torch.linalg.norm(space.lift(R)) > 0.99 * torch.linalg.norm(G.float())


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_long_side_on_request(side):
    A = decaying((30, 70), "float64")
    space = Subspace(rank=4, side=side).refresh(A)
    assert space.basis.shape[0] == (30 if side == "left" else 70)
    assert np.linalg.norm(A - space.lift(space.project(A))) < 0.26 * np.linalg.norm(A)


def test_ranks_of_every_size():
    A = gaussian((6, 9), "float64")
    for rank in (1, 6, 50, 0.5, 0.01, 1.0, 1):
        space = Subspace(rank=rank).refresh(A)
        assert defect(space.basis) < 1e-13
    assert Subspace(rank=50).refresh(A).basis.shape == (6, 6)
    assert Subspace(rank=0.5).refresh(A).basis.shape == (6, 3)
    assert Subspace(rank=3).refresh(gaussian((0, 9), "float64")).basis.shape == (0, 0)
    tall = Subspace(rank=5, side="left").refresh(gaussian((9, 2), "float64"))
    assert tall.basis.shape == (9, 5)
    assert defect(tall.basis) < 1e-13


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{"rank": 3}, {"energy": 0.9}, {"rank": 4, "warm_start": True}])
def test_not_finite(backend, bad, options):
    A = gaussian((20, 30), "float32")
    old = Subspace(**options).refresh(backend.asarray(A))
    A[3, 4] = bad
    with pytest.raises(ValueError, match=r"finite|NaN"):
        old.refresh(backend.asarray(A), step=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`rank` or `energy`"),
        ({"rank": 2, "energy": 0.5}, "`rank` or `energy`"),
        ({"energy": 1.0}, "`energy` must lie between"),
        ({"rank": 0}, "`rank` must be at least 1"),
        ({"rank": 2, "random_fraction": 1.5}, "`random_fraction`"),
        ({"rank": 2, "side": "short"}, "`side` must be"),
        ({"rank": 2, "oversampling": -1}, "`oversampling` must be at least 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Subspace(**options)


def test_misuse():
    A = gaussian((20, 30), "float64")
    with pytest.raises(ValueError, match="no basis to project"):
        Subspace(rank=2).project(A)
    space = Subspace(rank=2).refresh(A)
    with pytest.raises(ValueError, match="does not fit"):
        space.project(gaussian((21, 30), "float64"))
    with pytest.raises(TypeError, match="float32"):
        space.refresh(A.astype("float32"))
    with pytest.raises(TypeError, match=r"`G` has dtype int64.*cast it to float32"):
        space.refresh(A.astype("int64"))
    with pytest.raises(TypeError, match="must be an integer"):
        Subspace(rank=2.5)
    with pytest.raises(ValueError, match=r"two dimensions"):
        Subspace(rank=2).refresh(gaussian((2, 20, 30), "float64"))
    with pytest.raises(ValueError, match="`side`"):
        Subspace(rank=2, basis=space.basis).lift(space.project(A))
