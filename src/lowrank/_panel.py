"""QR of one tall panel: an orthonormal basis, turned into reflectors in compact WY form."""

from typing import NamedTuple

import numpy as np

from lowrank._array import Array, Namespace, adjoint, eps, eye, inverse, is_numpy_namespace, phases

__all__ = ["Panel", "factor_panel"]


class Panel(NamedTuple):
    """``P = Q R`` with ``Q = (I − V T Vᴴ) [D; 0]``."""

    V: Array
    T: Array
    D: Array
    R: Array


def factor_panel(P: Array, xp: Namespace, /) -> Panel:
    """Factor a tall p×b panel (b ≤ p) of any rank; zero and graded columns included.

    Columns are scaled to a largest entry of one first, so that no square leaves the range of the
    dtype (zero columns stay zero); the scale goes into R. The orthonormal basis Q is then written
    as reflectors. With the QR factorization ``Q[:b] = W R₁`` of its top block, where W is unitary
    and R₁ has a non-negative diagonal, and ``V = Q + [W; 0]``, ``S = I + R₁``:

        VᴴQ = I + WᴴQ[:b] = S,   so   (I − V S⁻¹ Vᴴ) Q = Q − V = −[W; 0],
        VᴴV = 2I + R₁ + R₁ᴴ = S + Sᴴ,   so   I − V S⁻¹ Vᴴ is unitary.

    Hence ``T = S⁻ᴴ`` and ``D = −W``. R₁ is a contraction with eigenvalues in [0, 1]; S is never
    close to singular. This is the compact WY form of Schreiber & Van Loan (A storage-efficient WY
    representation for products of Householder transformations, 1989, doi:10.1137/0910005), reached
    from an explicit basis as by Ballard et al. (Reconstructing Householder vectors from tall-skinny
    QR, 2015, doi:10.1016/j.jpdc.2015.06.003), with a QR of the top block in place of their LU.
    """
    b = P.shape[-1]
    largest = xp.max(xp.abs(P), axis=-2, keepdims=True)
    smallest = float(xp.finfo(P.dtype).smallest_normal)
    scale = xp.where(largest > smallest, largest, xp.full_like(largest, smallest))
    Q, R = _orthonormalise(_nudge(P / xp.astype(scale, P.dtype)), xp)
    R = R * xp.astype(xp.where(largest > 0, scale, xp.zeros_like(scale)), P.dtype)

    W, R1 = xp.linalg.qr(Q[..., :b, :])
    W = W * phases(xp.linalg.diagonal(R1))[..., None, :]
    V = xp.concat([Q[..., :b, :] + W, Q[..., b:, :]], axis=-2)
    S = eye(b, b, like=P) + adjoint(W) @ Q[..., :b, :]
    return Panel(V, adjoint(inverse(S)), -W, R)


def _nudge(X: Array) -> Array:
    """Add eps to the diagonal.

    In Householder QR of a panel of rank one, say, the columns after the first are rounding errors
    of rounding errors, and reach the denormal numbers within a few columns; torch on a CPU then
    returns NaN for complex64. A change of the size of rounding keeps them at eps.
    """
    rows, columns = X.shape[-2:]
    return X + eps(X) * eye(rows, columns, like=X)


def _orthonormalise(P: Array, xp: Namespace) -> tuple[Array, Array]:
    # NumPy's own panels are slow: 2.5 to 8 times the Cholesky QR at 4096×64, on two cores.
    # Elsewhere `qr` is fast, and asking whether Cholesky QR was accurate would read the device.
    if is_numpy_namespace(xp) and P.ndim == 2:
        factors = _cholesky_qr(P)
        if factors is not None:
            return factors
    Q, R = xp.linalg.qr(P)
    return Q, R


def _cholesky_qr(P: Array) -> tuple[Array, Array] | None:
    """Cholesky QR in two passes on NumPy, or None where P is too ill-conditioned for it.

    The first pass must leave columns that are nearly orthonormal; the second then makes them so to
    rounding (Yamamoto, Nakatsukasa, Yanagisawa & Fukaya, Roundoff error analysis of the CholeskyQR2
    algorithm, 2015, Electron. Trans. Numer. Anal. 44). NumPy has no triangular solve, and a product
    with the inverse leaves a residual of up to eps·κ; one step of iterative refinement takes it
    back to eps.
    """
    identity = np.eye(P.shape[-1], dtype=P.dtype)
    try:
        with np.errstate(all="ignore"):
            L = np.linalg.cholesky(adjoint(P) @ P)
            L_inverse = adjoint(np.linalg.inv(L))
            Q = P @ L_inverse
            gram = adjoint(Q) @ Q
            departure = np.max(np.abs(gram - identity), initial=0.0)
            if not departure < 0.1:
                return None
            if departure > 64 * eps(P):  # otherwise κ is near one
                Q += (P - Q @ adjoint(L)) @ L_inverse
                gram = adjoint(Q) @ Q
            L2 = np.linalg.cholesky(gram)
            return Q @ adjoint(np.linalg.inv(L2)), adjoint(L @ L2)
    except np.linalg.LinAlgError:
        return None
