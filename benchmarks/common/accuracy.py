"""The accuracy of what a method returns, on NumPy and torch."""

import math
from typing import Any


def parts(found: Any) -> tuple[Any, ...]:
    """``(Q,)``, ``(Q, B)``, ``(U, S, Vh)``, and so on, of a result, or the tuple it is."""
    if found is None or isinstance(found, tuple):
        return found or ()
    if hasattr(found, "eigenvectors"):
        return found.eigenvectors, found.eigenvalues, found.eigenvectors.conj().T
    if hasattr(found, "thin"):
        return found.thin(), found.R
    if hasattr(found, "C"):
        return found.C @ found.U, found.R
    every = (("U", "S", "Vh"), ("skeleton", "coefficients"), ("Q", "B"), ("Q",))
    names = next((names for names in every if hasattr(found, names[-1])), ())
    return tuple(getattr(found, name) for name in names)


def cut(factors: Any, k: int) -> tuple[Any, ...]:
    U, S, Vh = factors
    return U[:, :k], S[:k], Vh[:k]


def accuracy(A: Any, found: tuple[Any, ...]) -> dict[str, Any]:
    """Rank, error and loss of orthogonality of the factors that `parts` gives."""
    if not found:
        return {}
    Q, *rest = found
    left = Q * rest[0] if len(rest) == 2 else Q
    return {
        "rank": int(Q.shape[-1]),
        "error": relative_error(A, left, rest[-1] if rest else None),
        "orthogonality": orthogonality(Q),
    }


def relative_error(A: Any, left: Any, right: Any | None) -> float:
    """``‖A − left right‖/‖A‖``, with ``leftᴴ A`` where `right` is None; in float64, by blocks."""
    left = wide(left)
    if right is None:
        right = sum(left[rows].conj().mT @ wide(A[rows]) for rows in row_blocks(A))
    right = wide(right)
    squares, whole = 0.0, 0.0
    for rows in row_blocks(A):
        block = wide(A[rows])
        whole += float((abs(block) ** 2).sum())
        squares += float((abs(block - left[rows] @ right) ** 2).sum())
    return math.sqrt(squares / whole) if whole else math.sqrt(squares)


def orthogonality(Q: Any) -> float:
    """``‖QᴴQ − I‖_F``."""
    gram = sum(wide(Q[rows]).conj().mT @ wide(Q[rows]) for rows in row_blocks(Q))
    diagonal = list(range(Q.shape[1]))
    gram[diagonal, diagonal] -= 1.0
    return math.sqrt(float((abs(gram) ** 2).sum()))


def wide(X: Any) -> Any:
    """In double precision."""
    if hasattr(X, "double"):
        return X.cdouble() if X.is_complex() else X.double()
    return X.astype("complex128" if X.dtype.kind == "c" else "float64")


def row_blocks(A: Any) -> list[slice]:
    rows = max(1, 2**22 // max(1, A.shape[1]))
    return [slice(start, start + rows) for start in range(0, A.shape[0], rows)]
