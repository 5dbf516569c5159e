"""Every way to make a panel orthonormal, also those of devices that are not here, on torch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matrices import adjoint, defect, gaussian, with_spectrum

import lowrank
from lowrank import gallery
from lowrank._array import adjoint_matmul
from lowrank._array.tuning import Tuning
from lowrank._linalg import panel as _panel
from lowrank._linalg.panel import gram_matrix, orthonormal, orthonormalize
from lowrank._linalg.small_svd import robust_svd
from lowrank._rangefinder.sampling import iterated

torch = pytest.importorskip("torch")
from pretended import from_numpy, pretending, reads  # noqa: E402

DTYPES = ["float32", "float64", "complex64", "complex128"]
SPECTRA = {
    "flat": np.ones,
    "to eps": lambda b: np.geomspace(1, 1e-16, b),
    "far below eps": lambda b: np.geomspace(1, 1e-30, b),
    "rank one": lambda b: np.eye(1, b)[0],
    "steps": lambda b: np.where(np.arange(b) < b // 2, 1.0, 1e-9),
    "zero": np.zeros,
}
KINDS = (
    "turned",
    "graded",
    "graded the other way",
    "on few rows",
    "all the same",
    "of the unit matrix",
    "twice",
    "monomial",
)


def panel(kind, U, s, V):
    rows, columns = U.shape
    if kind.startswith("graded"):
        return U * (s if kind == "graded" else s[::-1])
    if kind == "on few rows":
        return np.where(np.arange(rows)[:, None] < 3, U, 0) @ V
    if kind == "twice":
        return np.concatenate([U[:, : -(-columns // 2)]] * 2, axis=1)[:, :columns]
    if kind == "monomial":
        return np.linspace(-1, 1, rows)[:, None] ** np.arange(columns)
    if kind == "turned":
        return (U * s) @ V
    return np.ones((rows, columns)) if kind == "all the same" else np.eye(rows, columns)


@pytest.fixture(params=["shifted Cholesky", "halves of shifted Cholesky", "native"])
def method(request, monkeypatch):
    widest = {"shifted Cholesky": 10**6, "halves of shifted Cholesky": 12, "native": 0}
    chosen = Tuning(False, 0, widest[request.param], 16)
    usual = _panel.tuning
    monkeypatch.setattr(
        _panel, "tuning", lambda X: chosen if isinstance(X, torch.Tensor) else usual(X)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    rows=st.integers(1, 400),
    columns=st.integers(1, 80),
    spectrum=st.sampled_from(sorted(SPECTRA)),
    kind=st.sampled_from(KINDS),
    size=st.sampled_from([1.0, 1e-30, 1e30]),
    seed=st.integers(0, 2**32 - 1),
)
def test_orthonormal_and_spanning(method, dtype, rows, columns, spectrum, kind, size, seed):
    rng = np.random.default_rng(seed)
    columns = min(rows, columns)

    def basis(m, k):
        X = rng.standard_normal((m, k)) + 1j * rng.standard_normal((m, k))
        return np.linalg.qr(X if "complex" in dtype else X.real)[0]

    U, V = basis(rows, columns), basis(columns, columns)
    P = (size * panel(kind, U, SPECTRA[spectrum](columns), V)).astype(dtype)
    Q, R = (X.numpy().astype(np.complex128) for X in orthonormalize(torch.asarray(P)))
    eps = np.finfo(dtype).eps
    assert defect(Q) < 30 * eps * columns**0.5 * max(1, columns / 8) ** 0.5
    assert np.linalg.norm(np.tril(R, -1)) == 0
    lost = np.linalg.norm(P - Q @ R, axis=0)
    # what is below the smallest normal number is rounded to multiples of the smallest
    least = rows**0.5 * np.finfo(dtype).smallest_normal
    sizes = np.linalg.norm(P.astype(np.complex128), axis=0)
    assert np.all(lost <= 60 * eps * sizes + least)


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_columns_of_one_sign(method, dtype):
    """A product adds in sequence; the Gram matrix of equal entries would be biased."""
    P = gaussian((30_000, 6), dtype)
    P[:, 1], P[:, 4] = 1.0, np.arange(1, 30_001)
    Q = orthonormalize(torch.asarray(P)).Q.numpy().astype(np.complex128)
    gram = sum(adjoint(block) @ block for block in np.array_split(Q, 300))
    assert np.linalg.norm(gram - np.eye(6)) < 200 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [1 / 3, 0.9])
def test_gram_matrices_of_equal_entries(dtype, value):
    """A sum in sequence, or by a few long blocks, is off by hundreds of eps."""
    X = np.full((30_000, 2), value, dtype)
    true = 30_000 * float(X[0, 0].real) ** 2
    for there in (X, torch.asarray(X)):
        assert np.abs(np.asarray(gram_matrix(there)) / true - 1).max() <= 50 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_columns_on_a_processor(dtype):
    """LAPACK's long sums leave columns that are orthonormal to a thousand eps here."""
    P = np.ones((30_000, 6), dtype)
    Q, R = (X.numpy().astype(np.complex128) for X in orthonormalize(torch.asarray(P)))
    gram = sum(adjoint(block) @ block for block in np.array_split(Q, 300))
    assert np.linalg.norm(gram - np.eye(6)) < 200 * np.finfo(dtype).eps
    assert np.linalg.norm(P - Q @ R) < 200 * np.finfo(dtype).eps * np.linalg.norm(P)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(120, 90), (90, 120), (300, 20), (20, 20)])
def test_what_stands_on_it(method, dtype, shape):
    """Reflectors, growth, the certificate and the factorizations, on another kind of panel."""
    A = with_spectrum(gallery.fast(min(shape)), shape, dtype)
    X = torch.asarray(A)
    eps = np.finfo(dtype).eps
    F = lowrank.householder_qr(X[:, :13]).extend(X[:, 13:])
    Q, R = F.thin().numpy(), F.R.numpy()
    assert defect(Q.astype(np.complex128)) < 300 * eps
    assert np.linalg.norm(A - Q @ R) < 100 * eps * np.linalg.norm(A)
    found = lowrank.range_finder(X, rtol=1e-3, rng=0)
    assert found.converged
    Q = found.Q.numpy().astype(np.complex128)
    assert np.linalg.norm(A - Q @ (adjoint(Q) @ A)) <= found.error_bound
    grown = lowrank.RangeFinder(X, rng=0).extend(5).extend(7).Q.numpy()
    assert defect(grown.astype(np.complex128)) < 300 * eps
    U, S, Vh = (Y.numpy() for Y in lowrank.svd(X, rtol=1e-3, rng=0))
    assert np.linalg.norm(A - (U * S) @ Vh) <= 1e-3 * np.linalg.norm(A)


# array-api-compat remembers the namespace of a type; torch traces the function behind the memory.
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning")
@pytest.mark.parametrize(
    ("method", "iterations"),
    [("shifted Cholesky", 1), ("halves of shifted Cholesky", 0), ("native", 1)],
    indirect=["method"],
)
def test_the_kernel_compiles_without_a_break(method, iterations):
    A = torch.asarray(gaussian((60, 50), "float32"))
    Omega = torch.asarray(gaussian((50, 20), "float32"))

    def kernel(A, Omega):
        Q = orthonormal(A @ Omega)
        return iterated(Q, lambda X: A @ X, lambda Y: adjoint_matmul(A, Y), iterations)

    torch._dynamo.reset()
    compiled = torch.compile(kernel, fullgraph=True, backend="aot_eager")
    Q, P = compiled(A, Omega).numpy(), kernel(A, Omega).numpy()
    assert np.linalg.norm(Q @ Q.T - P @ P.T) < 1e-4


def test_no_question_to_the_device(method):
    A = from_numpy(gaussian((60, 50), "float32"))
    with pretending():
        count, _ = reads(lambda: lowrank.range_finder(A, 20, rng=0, check_finite=False))
        assert count == 0
        assert reads(lambda: lowrank.qr(A))[0] == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("from_array", [np.asarray, torch.from_numpy])
def test_the_svd_of_entries_that_add_up_to_infinity(dtype, from_array):
    """They are finite all the same; NaN and Inf are refused, also where they cancel."""
    largest = float(np.finfo(dtype).max)
    M = np.full((40, 40), largest / 100, dtype=dtype)
    S = robust_svd(from_array(M))[1]
    assert float(S[0]) == pytest.approx(0.4 * largest, rel=1e-5)
    for first, second in [(np.nan, 0.0), (np.inf, 0.0), (np.inf, -np.inf)]:
        M[0, 0], M[1, 3] = first, second
        with pytest.raises(ValueError, match="not finite"):
            robust_svd(from_array(M))
