"""The cases of the search: their matrices, inputs, processes and calls."""

import contextlib
import functools
import inspect
import math
import warnings
from dataclasses import asdict, dataclass, replace

import array_api_strict
import dask.array
import numpy as np
import scipy.linalg
import scipy.sparse
import torch
from pretended import Pretended

import lowrank
from lowrank import gallery
from lowrank._operators.sketch import TestMatrix

KINDS = {
    "numpy": "array fortran transposed strided negative readonly unaligned swapped broadcast sparse"
    " linear_operator products rowblocks dask",
    "torch": "array transposed strided conjugated grad sparse products rowblocks",
    "strict": "array transposed",
    "cuda": "array transposed",  # tensors that say they are on a GPU
}
OF_PRODUCTS = ("sparse", "linear_operator", "products", "rowblocks", "dask")


@dataclass(frozen=True)
class Case:
    function: str = "svd"
    family: str = "gaussian"
    shape: tuple = (150, 140)
    seed: int = 0
    dtype: str = "float64"
    scale: str = ""  # of all entries: near the ends of the range of the dtype
    grade: int = 0  # rows from 1 to 10^-grade
    library: str = "numpy"
    kind: str = "array"
    rtol: float | None = 1e-2  # None: a fixed rank
    absolute: bool = False
    rank: int | None = None
    options: tuple = ()
    state: tuple = ()  # of the process
    history: tuple = ()  # steps before the last reach
    poison: tuple = ()  # a value, and where it is

    def told(self):
        plain = asdict(Case())
        return {name: value for name, value in asdict(self).items() if value != plain[name]}

    @property
    def working(self):
        return {"float16": "float32", "bfloat16": "float32"}.get(self.dtype, self.dtype)

    @property
    def eps(self):
        return float(np.finfo(self.working).eps)


class InjectedError(Exception):
    pass


# -- matrices --------------------------------------------------------------------------------------


def orthonormal(rng, m, k):
    return np.linalg.qr(rng.standard_normal((m, k)))[0]


def spectral(rng, m, n, values):
    return (orthonormal(rng, m, len(values)) * values) @ orthonormal(rng, n, len(values)).T


def placed(m, n, rows, columns, value=1.0):
    A = np.zeros((m, n))
    A[rows, columns] = value
    return A


def grid(m, n):
    return np.meshgrid(np.arange(1.0, m + 1), np.arange(1.0, n + 1), indexing="ij")


def kahan(m, n):
    k = min(m, n)
    A = np.zeros((m, n))
    A[:k, :k] = (0.99 ** np.arange(k))[:, None] * (np.eye(k) - 0.14 * np.triu(np.ones((k, k)), 1))
    return A


FAMILIES = {
    "gaussian": lambda r, m, n: r.standard_normal((m, n)),
    "zero": lambda r, m, n: np.zeros((m, n)),
    "ones": lambda r, m, n: np.ones((m, n)),
    "ones_plus": lambda r, m, n: 1 + 10.0 ** -r.integers(1, 17) * r.standard_normal((m, n)),
    "ones_but_one": lambda r, m, n: 1 + placed(m, n, m // 2, n // 3),
    "positive_rank_one": lambda r, m, n: np.outer(r.random(m), r.random(n)),
    "uniform": lambda r, m, n: r.random((m, n)),
    "rank_one": lambda r, m, n: np.outer(r.standard_normal(m), r.standard_normal(n)),
    "identity": lambda r, m, n: np.eye(m, n),
    "permutation": lambda r, m, n: r.permutation(np.eye(m, n)),
    "hadamard": lambda r, m, n: scipy.linalg.hadamard(512)[:m, :n] * 1.0 if m < 513 else None,
    "cosine": lambda r, m, n: np.cos(np.pi * (grid(m, n)[0] - 0.5) * grid(m, n)[1] / m),
    "toeplitz": lambda r, m, n: 0.9 ** np.abs(np.subtract(*grid(m, n))),
    "hilbert": lambda r, m, n: 1 / (sum(grid(m, n)) - 1),
    "kahan": lambda r, m, n: kahan(m, n),
    "ramp": lambda r, m, n: sum(grid(m, n)),
    "triangle": lambda r, m, n: np.tri(m, n),
    "vandermonde": lambda r, m, n: np.linspace(0, 1, m)[:, None] ** np.arange(n),
    "graded_columns": lambda r, m, n: r.standard_normal((m, n)) * np.geomspace(1, 1e-16, n),
    "graded_both": lambda r, m, n: np.exp(-sum(grid(m, n)) / 5) * r.standard_normal((m, n)),
    "graded_up": lambda r, m, n: r.standard_normal((m, n)) * np.geomspace(1e-12, 1, m)[:, None],
    "duplicates": lambda r, m, n: r.standard_normal((m, 3))[:, r.integers(3, size=n)],
    "zero_rows": lambda r, m, n: r.standard_normal((m, n)) * (np.arange(m) > 0.7 * m)[:, None],
    "zero_columns": lambda r, m, n: r.standard_normal((m, n)) * (np.arange(n) > 0.7 * n),
    "spikes": lambda r, m, n: placed(m, n, r.integers(m, size=9), r.integers(n, size=9), 1e3),
    "one_entry": lambda r, m, n: placed(m, n, m // 2, n // 2, -3.0),
    "ones_and_spike": lambda r, m, n: np.ones((m, n)) + placed(m, n, -1, -1, 1e6),
    "far_apart": lambda r, m, n: (
        np.where(np.arange(m)[:, None] == m // 2, 1e30, 1e-30) * np.ones((m, n))
    ),
    "cliff": lambda r, m, n: spectral(r, m, n, np.where(np.arange(min(m, n)) < 10, 1, 1e-12)),
    "half_rank": lambda r, m, n: spectral(r, m, n, np.ones(max(1, min(m, n) // 2))),
    "blocks": lambda r, m, n: np.kron(r.integers(-2, 3, (4, 4)), np.ones((m // 4 + 1, n // 4 + 1)))[
        :m, :n
    ],
    "noisy_low_rank": lambda r, m, n: (
        r.standard_normal((m, 5)) @ r.standard_normal((5, n))
        + 10.0 ** -r.integers(1, 16) * r.standard_normal((m, n))
    ),
}
for _name, _values in gallery.SPECTRA.items():
    FAMILIES[f"gallery_{_name}"] = lambda r, m, n, s=_values: spectral(r, m, n, s(min(m, n)))
# Those that know the seed: what a call with it left, and what its test matrix does not meet. None
# is scaled to the product that salts the seed: who knows all random numbers fools any sample.
OF_SEED = ("residual", "deflated", "residual_of_rank", "blind")


def cast(A, case):
    if case.dtype == "bfloat16":
        return torch.from_numpy(A.astype("float32")).bfloat16().float().numpy()
    if case.dtype == "float16":  # its largest number is 65504
        A = np.clip(A, -6e4, 6e4)
    return A.astype(case.dtype).astype(case.working)


def plain_matrix(case, family):
    rng, (m, n) = np.random.default_rng(case.seed), case.shape
    if case.function in ("eigh", "nystrom"):
        n = m
    A = FAMILIES[family](rng, m, n)
    A = rng.standard_normal((m, n)) if A is None else A
    A = A * np.geomspace(1, 10.0**-case.grade, m)[:, None]
    if "complex" in case.dtype:
        phases = np.exp(1j * rng.standard_normal((m, 1))) if case.seed % 2 else (1 + 1j) / 2**0.5
        A = A * phases
    if case.function == "eigh":
        A = (A + A.conj().T) / 2
    if case.function == "nystrom":
        A = A @ A.conj().T
        A = (A + A.conj().T) / 2
    return A


def sketched(case, A):
    """All that a call of the case draws, of its matrices and of the vector that salts its seed."""
    drawn, draw, vector = [], TestMatrix.draw, TestMatrix.gaussian_vector

    def kept(self, *args, method=draw):
        drawn.append(method(self, *args))
        return drawn[-1]

    TestMatrix.draw = kept
    TestMatrix.gaussian_vector = functools.partialmethod(kept, method=vector)
    try:
        given = {"rtol": case.rtol or 0.1, **wanted(case, "range_finder"), "rng": case.seed}
        lowrank.range_finder(wrapped(case, A.astype(case.working)), **given)
    finally:
        TestMatrix.draw, TestMatrix.gaussian_vector = draw, vector
    return [
        np.asarray(numbers(X) if isinstance(X, Pretended) else X).astype(np.complex128)
        for X in drawn
        if X is not None
    ]


@contextlib.contextmanager
def quietly():
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def of_seed(case, name):
    A = plain_matrix(case, "gaussian")
    A = (A / np.linalg.norm(A)).astype(case.working)
    side = dict(case.options).get("side", "left")
    if name == "blind":
        drawn = [X for X in sketched(case, A) if X.shape[0] == A.shape[1]]
        if not drawn:
            return A
        P = np.linalg.qr(np.hstack(drawn)[:, : max(1, A.shape[1] - 10)])[0]
        E = A - (A @ P) @ P.conj().T
        return E / np.linalg.norm(E)
    stop = {"rank": 20} if name == "residual_of_rank" else {"rtol": 0.7}
    given = wanted(case, "range_finder") if case.seed % 2 else {"side": side}
    Q = lowrank.range_finder(wrapped(case, A), **stop, **given, rng=case.seed).Q
    Q = numbers(Q) if isinstance(Q, Pretended) else np.asarray(Q)
    E = A - Q @ (Q.conj().T @ A) if side == "left" else A - (A @ Q) @ Q.conj().T
    return E / np.linalg.norm(E) if name == "residual" else E


def matrix(case):
    """The matrix of a case, as the library's working dtype holds it."""
    with quietly():
        if case.family in OF_SEED:
            A = of_seed(replace(case, kind="rowblocks" if case.kind == "dask" else case.kind,
                                scale="", poison=()), case.family)  # fmt: skip
            A = A if "complex" in case.dtype else A.real
            if case.function in ("eigh", "nystrom"):
                A = A @ A.conj().T if case.function == "nystrom" else (A + A.conj().T) / 2
        else:
            A = plain_matrix(case, case.family)
        limits = np.finfo("float32" if case.dtype == "bfloat16" else case.dtype)
        size = np.max(np.abs(A), initial=0.0)
        if case.scale and size > 0:
            sizes = {
                "max": float(limits.max) / 8 / math.sqrt(A.size),
                "overflow": float(limits.max) / 2,
                "root_of_max": float(limits.max) ** 0.5,
                "root_of_tiny": float(limits.tiny) ** 0.5,
                "tiny": float(limits.tiny),
                "subnormal": float(limits.tiny) / 64,
                "quantum": float(limits.smallest_subnormal) * 4,
            }
            A = A / size * sizes[case.scale]
        A = cast(np.nan_to_num(A), case)
        if case.function in ("eigh", "nystrom"):
            A = np.tril(A) + np.tril(A, -1).conj().T
        if case.kind == "broadcast":
            A = np.repeat(A[:1], A.shape[0], axis=0)
        if case.poison and A.size:
            value, where = case.poison
            i = {"first": 0, "middle": min(A.shape) // 2, "last": -1}[where]
            A[i, i] = value
    return A


# -- inputs ----------------------------------------------------------------------------------------


class Products:
    """An operator; its `fails`-th product raises, or is NaN."""

    def __init__(self, A):
        self.A, self.shape, self.dtype = A, tuple(A.shape), A.dtype
        self.fails, self.how = 0, ""

    def _made(self, Y):
        self.fails -= 1
        if self.fails == 0 and self.how == "raise":
            raise InjectedError
        return Y * math.nan if self.fails == 0 else Y

    def matmat(self, X):
        return self._made(self.A @ X)

    def rmatmat(self, Y):
        A = self.A
        return self._made((A.mH if isinstance(A, torch.Tensor) else A.conj().T) @ Y)


def wrapped(case, A):
    """What the library is given."""
    A, kind = np.array(A), case.kind
    if case.library in ("torch", "cuda"):
        A = torch.from_numpy(A).to(getattr(torch, case.dtype))
        if case.library == "cuda":
            return Pretended(A.T.contiguous().T if kind == "transposed" else A)
        match kind:
            case "transposed":
                return A.T.contiguous().T
            case "strided":
                return torch.stack([A, A + 1], dim=-1)[..., 0]
            case "conjugated":
                return A.conj().resolve_conj().conj()
            case "grad":
                return A.requires_grad_()
            case "sparse":
                return A.to_sparse() if case.seed % 2 else A.to_sparse_csr()
    else:
        A = A.astype(case.dtype)
    if case.library == "strict":
        A = array_api_strict.asarray(A)
        return A.T[:, :].T if kind == "transposed" else A
    match kind:
        case "fortran":
            return np.asfortranarray(A)
        case "transposed":
            return np.ascontiguousarray(A.T).T
        case "strided":
            return np.repeat(np.repeat(A, 2, axis=0), 3, axis=1)[::2, ::3]
        case "negative":
            return np.ascontiguousarray(A[::-1, ::-1])[::-1, ::-1]
        case "readonly":
            A.flags.writeable = False
        case "unaligned":
            memory = np.zeros(A.nbytes + 1, "uint8")
            memory[1:] = np.frombuffer(A.tobytes(), "uint8")
            return memory[1:].view(A.dtype).reshape(A.shape)
        case "swapped":
            return A.astype(A.dtype.newbyteorder())
        case "broadcast":
            return np.broadcast_to(A[:1], A.shape)
        case "sparse":
            return scipy.sparse.csr_array(A) if case.seed % 2 else scipy.sparse.csc_matrix(A)
        case "linear_operator":
            return scipy.sparse.linalg.aslinearoperator(A)
        case "products":
            return Products(A)
        case "rowblocks":
            return lowrank.RowBlocks(A, rows=max(1, A.shape[0] // 4))
        case "dask":
            return dask.array.from_array(A, chunks=(max(1, A.shape[0] // 2), A.shape[1]))
    return A


STRICT = type(array_api_strict.zeros(1))


def numbers(X):
    if isinstance(X, Products):
        return numbers(X.A)
    if isinstance(X, torch.Tensor):
        X = X.inner if isinstance(X, Pretended) else X
        X = X.detach().to_dense() if X.layout != torch.strided else X.detach()
        return X.resolve_conj().float().numpy() if X.dtype == torch.bfloat16 else X.numpy().copy()
    if scipy.sparse.issparse(X):
        return X.toarray()
    return np.array(X) if isinstance(X, np.ndarray | STRICT) else None


def norm(X, kind):
    largest = np.max(np.abs(X), initial=0.0)
    if largest == 0 or not np.isfinite(largest):
        return largest
    X = X / largest
    if kind == "spectral":
        narrow = np.complex128 if np.iscomplexobj(X) else np.float64
        return largest * np.linalg.norm(X.astype(narrow), 2)
    return largest * np.sqrt(np.sum(np.abs(X) ** 2))


def wanted(case, name):
    accepted = inspect.signature(getattr(lowrank, name)).parameters
    return {key: value for key, value in case.options if key in accepted}
