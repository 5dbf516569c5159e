"""The same singular values and eigenvalues as other libraries find in the same matrices."""

import sys

import numpy as np
import pytest
from matrices import adjoint, gaussian, with_spectrum

import lowrank
from lowrank import gallery

RANK = 12
S = gallery.fast(150)


@pytest.fixture(autouse=True)
def seeded():
    """Some peers draw from global generators; an unlucky draw is no fault of ours."""
    np.random.seed(0)  # noqa: NPY002
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(params=["float64", "complex128"])
def A(request):
    return with_spectrum(S, (180, 150), request.param)


def real(A):
    return A.dtype.kind == "f"


def check(S_of_peer, found, rtol=1e-6):
    assert np.allclose(found.S, S_of_peer, rtol=rtol)
    assert np.allclose(found.S, S[: len(found.S)], rtol=rtol)


def hermitian(dtype, values):
    V = np.linalg.qr(gaussian((len(values), len(values)), dtype)).Q
    A = (V * values) @ adjoint(V)
    return (A + adjoint(A)) / 2


def test_numpy(A):
    U, s, Vh = np.linalg.svd(A, full_matrices=False)
    found = lowrank.svd(A, RANK, power_iterations=4, rng=0)
    check(s[:RANK], found)
    # the signs are fixed by the largest entry of the rows of Vh, so vectors can be compared too
    where = np.argmax(np.abs(Vh[:RANK]), axis=1, keepdims=True)
    phase = np.take_along_axis(Vh[:RANK], where, axis=1)
    phase /= np.abs(phase)
    assert np.allclose(found.Vh, Vh[:RANK] / phase, atol=1e-5)
    assert np.allclose(found.U, U[:, :RANK] * phase[:, 0], atol=1e-5)


def test_scikit_learn(A):
    extmath = pytest.importorskip("sklearn.utils.extmath", reason="needs scikit-learn")
    if not real(A):
        with pytest.raises(ValueError, match="Complex data not supported"):
            extmath.randomized_svd(A, RANK, random_state=0)
        return
    _, s, _ = extmath.randomized_svd(A, RANK, random_state=0)
    check(s, lowrank.svd(A, RANK, power_iterations=4, rng=0))


def test_scikit_learn_range_finder():
    extmath = pytest.importorskip("sklearn.utils.extmath", reason="needs scikit-learn")
    A = with_spectrum(gallery.slow(150), (180, 150), "float64")
    Q = extmath.randomized_range_finder(A, size=20, n_iter=2, random_state=0)
    ours = lowrank.range_finder(A, 20, power_iterations=2, rng=0).Q
    theirs, own = (np.linalg.norm(A - X @ (X.T @ A)) for X in (Q, ours))
    assert own <= 1.05 * theirs


def test_scikit_learn_principal_components():
    decomposition = pytest.importorskip("sklearn.decomposition", reason="needs scikit-learn")
    X = with_spectrum(S, (300, 150), "float64") + gaussian((1, 150), "float64", 1)
    peer = decomposition.PCA(RANK, svd_solver="full").fit(X)
    found = lowrank.svd(X, RANK, center=True, power_iterations=4, rng=0)
    assert np.allclose(found.mean, peer.mean_)
    assert np.allclose(found.S**2 / 299, peer.explained_variance_, rtol=1e-6)
    flips = np.sign(np.sum(found.Vh * peer.components_, axis=1))
    assert np.allclose(found.Vh, flips[:, None] * peer.components_, atol=1e-5)
    assert np.allclose(found.U * found.S, peer.transform(X) * flips, atol=1e-5)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_a_share_of_the_variance(share):
    """scikit-learn's ``PCA(0.9)`` is a tolerance of √(1 − 0.9) in the Frobenius norm."""
    decomposition = pytest.importorskip("sklearn.decomposition", reason="needs scikit-learn")
    X = with_spectrum(gallery.slower(150), (300, 150), "float64") + 3.0
    peer = decomposition.PCA(share, svd_solver="full").fit(X)
    found = lowrank.svd(X, rtol=(1 - share) ** 0.5, center=True, rng=0)
    assert found.converged
    assert peer.n_components_ <= found.rank <= peer.n_components_ + max(1, peer.n_components_ // 50)


def test_fbpca(A):
    fbpca = pytest.importorskip("fbpca")
    _, s, _ = fbpca.pca(A, RANK, raw=True, n_iter=4, l=RANK + 10)
    check(s, lowrank.svd(A, RANK, power_iterations=4, rng=0))
    U, s, Vh = fbpca.pca(A, RANK, raw=False, n_iter=4, l=RANK + 10)
    found = lowrank.svd(A, RANK, center=True, power_iterations=4, rng=0)
    assert np.allclose(found.S, s, rtol=1e-5)
    # its norm of the error, and the certified one
    error = fbpca.diffsnorm(A - found.mean, U, s, Vh)
    ours = lowrank.residual_norm(A - found.mean, U, s[:, None] * Vh, norm="spectral", rng=0)
    assert error <= ours.upper_bound * (1 + 1e-6)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
def test_fbpca_eigenvalues(dtype):
    fbpca = pytest.importorskip("fbpca")
    signed = np.where(np.arange(120) % 3 == 1, -1, 1) * gallery.fast(120)
    H = hermitian(dtype, signed)
    w, _ = fbpca.eigens(H, RANK, n_iter=4, l=RANK + 10)
    assert np.allclose(lowrank.eigh(H, RANK, power_iterations=4, rng=0).eigenvalues, w, rtol=1e-6)
    P = hermitian(dtype, gallery.fast(120))
    truth = gallery.fast(120)[:RANK]
    theirs, ours = [], []
    for seed in range(20):
        w, _ = fbpca.eigenn(P, RANK, n_iter=0, l=RANK + 10)
        theirs.append(np.sum(np.abs(w - truth)))
        # theirs is of the range of PΩ, not of Ω: two passes
        Q = lowrank.range_finder(P, RANK + 10, rng=seed).Q
        w, _ = lowrank.nystrom(P, RANK, test_matrix=Q)
        ours.append(np.sum(np.abs(w - truth)))
    assert np.mean(ours) <= 1.2 * np.mean(theirs)


def test_torch(A):
    torch = pytest.importorskip("torch")
    T = torch.asarray(A)
    _, s, _ = torch.svd_lowrank(T, q=RANK + 10, niter=4)
    found = lowrank.svd(T, RANK, power_iterations=4, rng=0)
    assert np.allclose(found.S, s[:RANK], rtol=1e-6)
    assert np.allclose(found.S, S[:RANK], rtol=1e-6)


def test_torch_principal_components():
    torch = pytest.importorskip("torch")
    T = torch.asarray(with_spectrum(S, (300, 150), "float64") + 2.0)
    _, s, V = torch.pca_lowrank(T, q=RANK + 10, niter=4)
    found = lowrank.svd(T, RANK, center=True, power_iterations=4, rng=0)
    assert np.allclose(found.S, s[:RANK], rtol=1e-5)
    overlap = torch.abs(torch.sum(found.Vh.mT * V[:, :RANK], dim=0))
    assert np.allclose(overlap, 1.0, atol=1e-6)


def test_torch_stacks():
    torch = pytest.importorskip("torch")
    members = [with_spectrum(S[:60], (70, 60), "float64", seed) for seed in range(4)]
    T = torch.asarray(np.stack(members))
    _, s, _ = torch.svd_lowrank(T, q=RANK + 10, niter=4)
    found = lowrank.svd(T, RANK, power_iterations=4, rng=0)
    assert np.allclose(found.S, s[:, :RANK], rtol=1e-6)


def test_scipy_svds(A):
    linalg = pytest.importorskip("scipy.sparse.linalg")
    s = linalg.svds(A, RANK, return_singular_vectors=False, rng=0)
    check(np.sort(s)[::-1], lowrank.svd(A, RANK, power_iterations=4, rng=0))


def test_scipy_interpolative(A):
    interpolative = pytest.importorskip("scipy.linalg.interpolative")
    _, s, _ = interpolative.svd(A, 1e-9, rng=0)
    found = lowrank.svd(A, rtol=1e-9, rng=0)
    check(s[:RANK], lowrank.svd(A, RANK, power_iterations=4, rng=0), rtol=1e-5)
    assert abs(len(s) - found.rank) <= 8
    # ranks and norms of differences
    rank = interpolative.estimate_rank(A, 1e-4, rng=0)
    spectral = lowrank.svd(A, rtol=1e-4, norm="spectral", rng=0)
    assert abs(spectral.rank - gallery.best_rank(S, rtol=1e-4, norm="spectral")) <= 1
    assert spectral.rank <= rank
    approximation = (spectral.U * spectral.S) @ spectral.Vh
    difference = interpolative.estimate_spectral_norm_diff(A, approximation, rng=0)
    bound = lowrank.residual_norm(
        A, spectral.U, spectral.S[:, None] * spectral.Vh, norm="spectral", rng=0
    )
    assert difference <= bound.upper_bound
    none = np.zeros((180, 0), A.dtype)
    norm = lowrank.residual_norm(A, none, norm="spectral", rng=0)
    assert interpolative.estimate_spectral_norm(A, rng=0) <= norm.upper_bound


def test_librla(A):
    librla = pytest.importorskip("librla")
    _, s, _ = librla.svd_sketch(A, RANK, power_iter=4, rng=np.random.default_rng(0))
    check(s[:RANK], lowrank.svd(A, RANK, power_iterations=4, rng=0))
    Q, *_ = librla.orth_sketch(A, RANK, rng=np.random.default_rng(0))
    found = lowrank.range_finder(A, Q.shape[1], rng=0)
    theirs, own = (np.linalg.norm(A - X @ (adjoint(X) @ A)) for X in (Q, found.Q))
    assert own <= 3 * theirs  # one draw each of as many columns


def test_librla_to_a_tolerance():
    librla = pytest.importorskip("librla")
    A = with_spectrum(gallery.fast(600), (600, 600), "float64")
    _, s, _ = librla.svd_sketch(A, 1e-4, rng=np.random.default_rng(0))
    found = lowrank.svd(A, rtol=1e-4, rng=0)
    assert found.converged
    assert found.rank <= len(s)
    assert np.allclose(found.S[:20], s[:20], rtol=1e-5)
