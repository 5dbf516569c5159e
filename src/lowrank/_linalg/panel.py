"""QR of one tall panel: an orthonormal basis of any rank, and its reflectors in compact WY form."""

import math
from functools import lru_cache
from typing import Any

import numpy as np

from lowrank import _array as xa
from lowrank._array import Array, Namespace
from lowrank._array.tuning import tuning
from lowrank._linalg import triangular as xt
from lowrank.results import QRResult

# At most this many columns: numpy.linalg.qr takes over where Cholesky QR is not accurate.
NARROW = 16
# Rows of a block of a long Gram matrix.
GRAM_ROWS = 1024
# Rows that are held in double precision at a time.
DOUBLE_ROWS = 4096
# Up to this `size_of_top`, reflectors need no QR of the top block.
SMALL = 0.5**4
# Norm of the noise that gives unit columns full rank: a quarter of the eps of single precision.
NOISE = 0.25 * 2.0**-23


def reflectors(Q: Array) -> tuple[Array, Array, Array]:
    """V, T and D of a p×b orthonormal ``Q = (I − V T Vᴴ) [D; 0]``, D unitary.

    With the QR factorization ``Q[:b] = W R₁`` of its top block, where W is unitary and R₁ has a
    non-negative diagonal, and ``V = Q + [W; 0]``, ``S = I + R₁``:

        VᴴQ = I + WᴴQ[:b] = S,   so   (I − V S⁻¹ Vᴴ) Q = Q − V = −[W; 0],
        VᴴV = 2I + R₁ + R₁ᴴ = S + Sᴴ,   so   I − V S⁻¹ Vᴴ is unitary.

    Hence ``T = S⁻ᴴ`` and ``D = −W``. R₁ is a contraction with eigenvalues in [0, 1]; S is never
    close to singular. This is the compact WY form of Schreiber & Van Loan (A storage-efficient WY
    representation for products of Householder transformations, 1989, doi:10.1137/0910005), reached
    from an explicit basis as by Ballard et al. (Reconstructing Householder vectors from tall-skinny
    QR, 2015, doi:10.1016/j.jpdc.2015.06.003), with a QR of the top block in place of their LU.
    """
    W, T = _top_of_reflectors(Q)
    b = Q.shape[-1]
    V = xa.array_namespace(Q).concat([Q[..., :b, :] + W, Q[..., b:, :]], axis=-2)
    return V, T, -W


def unitary_reflectors(Q: Array, D: Array, *, is_plain: bool) -> tuple[Array, Array]:
    """V and T of a unitary ``H = I − V T Vᴴ``, for a Q that is nearly orthonormal: ``QᴴQ = I + D``.

    With ``V = Q + [W; 0]`` and ``WᴴW = I + E``, H is unitary if and only if ``T = S⁻ᴴ`` with
    ``S + Sᴴ = VᴴV = 2I + WᴴQ₁ + Q₁ᴴW + D + E``: so ``S = I + WᴴQ₁ + (D + E)/2``. The range of Q is
    then mapped to that of [I; 0] up to D. With `is_plain`, which `size_of_top` must allow, W = I:
    no QR and few operations. If D is in double precision, so are S and its inverse.
    """
    xp, b, (identity,) = xa.array_namespace(Q), D.shape[-1], _constants_of(Q, "identity")
    Q1 = Q[..., :b, :]
    S = top = Q1 + identity
    if not is_plain:
        W, R1 = orthonormalize(Q1)
        W = W * xa.phases(xp.linalg.diagonal(R1))[..., None, :]
        wide_W, wide_Q1 = (xp.astype(X, D.dtype, copy=False) for X in (W, Q1))
        S, top, D = identity + xa.adjoint(wide_W) @ wide_Q1, Q1 + W, D + defect(W, is_panel=True)
    V = xp.concat([top, Q[..., b:, :]], axis=-2)
    return V, _as(Q, xa.adjoint(xt.inverse(S + 0.5 * D)))


def size_of_top(Q: Array) -> Array:
    """An upper bound on ‖Q[:b]‖₂⁴ for the b columns of Q (the largest of a stack), as a 0-d array.

    That is ``‖(Q₁ᴴQ₁)²‖_F``, the root of the sum of the eighth powers of the singular values of Q₁.
    The identities of `reflectors` hold for every unitary W if S = I + WᴴQ₁ can be inverted. With
    W = I, ``‖T‖₂ = ‖S⁻¹‖₂ ≤ 1/(1 − ‖Q₁‖₂)``, and ``‖V‖₂² = ‖S + Sᴴ‖₂ ≤ 4``. Rounding errors of V
    and T enter ``HᴴH − I = V (TᴴVᴴVT − T − Tᴴ) Vᴴ`` multiplied by these. Up to SMALL, ‖Q₁‖₂ is at
    most ½ and ‖T‖₂ at most 2. A Gaussian panel has ``‖Q₁‖₂ ≈ 2√(b/p)``: small if p ≥ 24b.
    """
    top = Q[..., : Q.shape[-1], :]
    gram = xa.adjoint(top) @ top
    return xa.array_namespace(Q).linalg.vector_norm(gram @ gram)


def _top_of_reflectors(Q: Array) -> tuple[Array, Array]:
    b = Q.shape[-1]
    W, R1 = orthonormalize(Q[..., :b, :])
    W = W * xa.phases(xa.array_namespace(Q).linalg.diagonal(R1))[..., None, :]
    return W, xa.adjoint(xt.inverse(xa.eye(b, b, like=Q) + xa.adjoint(W) @ Q[..., :b, :]))


def orthonormalize(P: Array, gram: Array | None = None) -> QRResult:
    """QR factorization of a p×b matrix or stack of any rank, also zero or graded.

    Q is orthonormal to rounding, and spans P to rounding. On a CPU, Cholesky QR is tried first and
    checked: NumPy's own `qr` takes 2.5 to 8 times as long (4096×64, two cores), and the check costs
    nothing. On a device nothing is checked: a check would wait for the device, break a compiled
    graph, and end the capture of a CUDA graph.
    """
    p, b = P.shape[-2:]
    if b > p:
        Q, R = orthonormalize(P[..., :p])
        R = xa.array_namespace(P).concat([R, xa.adjoint_matmul(Q, P[..., p:])], axis=-1)
        return QRResult(Q, R)
    if b == 0:
        return QRResult(P, xa.adjoint(P) @ P)
    is_checked, narrowest, widest, *_ = tuning(P)
    tall = p >= 2 * b  # LAPACK is fast for matrices that are nearly square
    if is_mixed(P):
        Q, first, second = _mixed_passes(_in_double(P))
        return QRResult(_as(P, Q), _as(P, second @ first))
    if is_checked and (tall or b <= 256) and _can_be_checked(P):
        gram = xa.adjoint_matmul(P, P) if gram is None else gram
        factors = _checked_cholesky_qr(P, gram)
        if factors is not None:
            return factors
        if tall:
            return _by_halves(P, gram) if b > NARROW else _polished(_native_qr(P))
    elif widest and tall and (b >= narrowest or P.ndim > 2) and xa.eps(P) < 1e-10:
        return _shifted_cholesky_qr(P) if b <= widest else _by_halves(P)
    return _native_qr(P)


def orthonormal(P: Array) -> Array:
    """The orthonormal factor alone."""
    return _as(P, _mixed_passes(_in_double(P))[0]) if is_mixed(P) else orthonormalize(P).Q


def conditioned(P: Array) -> Array:
    """Well-conditioned columns that span P: enough for the next product.

    Where Cholesky QR can be checked, one pass of it: orthonormal to a tenth.
    """
    p, b = P.shape[-2:]
    if is_mixed(P):
        return _mixed_conditioned(P)
    if tuning(P).is_checked and p >= 2 * b and _can_be_checked(P):
        found = _checked_cholesky_qr(P, xa.adjoint(P) @ P, passes=1)
        if found is not None:
            return found.Q
    return orthonormalize(P).Q


def _can_be_checked(P: Array) -> bool:
    return 0 not in P.shape and not xa.is_traced(P)


def _by_halves(P: Array, gram: Array | None = None) -> QRResult:
    """``[P₁ P₂]`` with ``P₁ = Q₁R₁ = H [D; 0] R₁`` and ``P₂ = H [X; Q₂R₂]``, H the reflector of Q₁.

    Its ``V = Q₁ + [W; 0]`` is never formed.
    """
    half = -(-P.shape[-1] // 2)
    Q1, R1 = orthonormalize(P[..., :half], None if gram is None else gram[..., :half, :half])
    W, T = _top_of_reflectors(Q1)
    # Memory: at most three p×b panels, with P itself. Sums are in place.
    C = xa.adjoint(T) @ (
        xa.adjoint_matmul(Q1, P[..., half:]) + xa.adjoint(W) @ P[..., :half, half:]
    )
    X = Q1 @ -C
    X += P[..., half:]
    R12 = C - xa.adjoint(W) @ X[..., :half, :]
    Q2, R2 = orthonormalize(X[..., half:, :])
    C = T @ xa.adjoint_matmul(Q1[..., half:, :], Q2)
    X = Q1 @ -C
    X[..., :half, :] -= W @ C
    X[..., half:, :] += Q2
    del Q2
    Q = xa.array_namespace(P).concat([Q1, X], axis=-1)
    return QRResult(Q, xt.block_triangle(R1, R12, R2))


def _native_qr(P: Array) -> QRResult:
    """The library's own `qr`, with columns scaled to a largest entry of one and eps added.

    The scale keeps squares within the range of the dtype. The eps on the diagonal is needed for
    panels of low rank: of a panel of rank one, later columns become rounding errors of rounding
    errors in Householder QR, reach subnormal numbers within a few columns, and torch on a CPU then
    returns NaN for complex64.
    """
    X, scale = _scaled(P)
    b = X.shape[-1]
    top = X[..., :b, :] + xa.eps(X) * xa.eye(b, b, like=X)
    X = xa.put(X, (..., slice(b), slice(None)), top)
    Q, R = xa.array_namespace(P).linalg.qr(X)
    return QRResult(Q, R * scale)


def _polished(found: QRResult) -> QRResult:
    """The factors after one pass of Cholesky QR with blocked sums.

    LAPACK's long sums leave columns that are orthonormal only to p/4 eps, for a tall panel of equal
    numbers with p rows.
    """
    better = _checked_cholesky_qr(found.Q, gram_matrix(found.Q), passes=1)
    return found if better is None else QRResult(better.Q, better.R @ found.R)


def _scaled(P: Array) -> tuple[Array, Array]:
    """`P` with columns scaled to a largest entry of one, and their scale; zero columns stay."""
    xp = xa.array_namespace(P)
    largest = xp.max(xp.abs(P), axis=-2, keepdims=True)
    smallest = float(xp.finfo(P.dtype).smallest_normal)
    divisor = xp.where(largest > smallest, largest, xp.full_like(largest, smallest))
    scale = xp.where(largest > 0, divisor, xp.zeros_like(divisor))
    return P / xp.astype(divisor, P.dtype), xp.astype(scale, P.dtype)


def _checked_cholesky_qr(P: Array, gram: Array, passes: int = 2) -> QRResult | None:
    """Cholesky QR in one pass or two; None if it is not accurate, for a stack if for any member.

    The Gram matrix, with its diagonal scaled to one, has a rounding error of a few eps. In the
    basis ``P L⁻ᴴ`` that is amplified by ``L⁻¹ · L⁻ᴴ``: one pass is enough if ``‖L⁻¹‖²_F`` is hardly
    above its minimum, the number of columns. A second pass corrects errors up to 0.1 (Yamamoto,
    Nakatsukasa, Yanagisawa & Fukaya, Roundoff error analysis of the CholeskyQR2 algorithm, 2015,
    Electron. Trans. Numer. Anal. 44). NumPy has no triangular solve. The product with the inverse
    leaves a residual of eps times the entries of ``|L⁻ᴴ| |Lᴴ|``, which is not affected by a grading
    of the rows of R, such as that of a sketch of decaying singular values.
    """
    xp, b, epsilon = xa.array_namespace(P), P.shape[-1], xa.eps(P)
    smallest = float(xp.finfo(P.dtype).smallest_normal)
    sizes = xp.linalg.diagonal(gram)
    sizes = xp.real(sizes) if xa.is_complex(P) else sizes
    if not bool(xp.all((sizes > smallest / epsilon**2) & (sizes < math.inf))):
        return None
    sizes = xp.astype(xp.sqrt(sizes), P.dtype)
    rows, columns = sizes[..., :, None], sizes[..., None, :]
    L = xt.checked_cholesky(gram / columns / rows)
    if L is None:
        return None
    L_inverse = xt.lower_inverse(L)
    growth = float(xp.max(xp.sum(xp.abs(L_inverse) ** 2, axis=(-2, -1))))
    is_near = growth < 1.1 * b  # to a multiple of an orthonormal basis
    if not (is_near or (growth * epsilon < 0.03 and _residual_growth(L, L_inverse) < 32.0)):
        return None
    Q = P @ xa.adjoint(L_inverse / columns)
    L = L * rows
    if is_near or passes == 1:
        return QRResult(Q, xa.adjoint(L))
    gram = gram_matrix(Q)
    if not float(xp.max(xp.abs(gram - xa.eye(b, b, like=Q)))) < 0.1:
        return None
    L2 = xt.checked_cholesky(gram)
    if L2 is None:
        return None
    return QRResult(Q @ xa.adjoint(xt.lower_inverse(L2)), xa.adjoint(L @ L2))


def _residual_growth(L: Array, L_inverse: Array) -> float:
    xp = xa.array_namespace(L)
    return float(xp.max(xa.adjoint(xp.abs(L_inverse)) @ xa.adjoint(xp.abs(L))))


def _shifted_cholesky_qr(P: Array) -> QRResult:
    """Cholesky QR in five passes, three of them shifted, for every rank if p ≥ 2b.

    With ``PᴴP + sI = RᴴR`` a singular value σ of P becomes ``σ/√(σ² + s)``, which is at least of
    order ``σ/√s``. The least singular value is about eps, by Gaussian noise in the first rows; with
    s of order eps, shifted passes raise it to order one. Two passes without a shift then make the
    columns orthonormal to rounding (Fukaya, Kannan, Nakatsukasa, Yamamoto & Yanagisawa, Shifted
    Cholesky QR for computing the QR factorization of ill-conditioned matrices, 2020,
    doi:10.1137/18M1218212). Triangular solves, and no inverses, keep the residual at eps.

    The shift covers the rounding of the Gram matrix (see `_rounding_of_gram`); in single precision
    that is too much for three passes. Tried on panels from square to 10⁵ times as tall as wide,
    with decaying, repeated, zero, constant, monomial and Hilbert columns: a small shift without
    noise fails, and so do square panels. Noise on the diagonal alone fails for nilpotent panels.
    """
    xp = xa.array_namespace(P)
    X, scale = _scaled(P)
    *_, p, b = X.shape
    norms = xp.astype(xp.linalg.vector_norm(X, axis=-2, keepdims=True), P.dtype)
    X = X / xp.where(norms == 0, xp.ones_like(norms), norms)
    identity = xa.eye(b, b, like=X)
    top = X[..., : 2 * b, :]
    top += 2.0 * xa.eps(X) / NOISE * _constant("noise", 0, b, xp, X.dtype, xa.device_of(X))
    shift = _rounding_of_gram(min(p, 2 * max(GRAM_ROWS, 4 * b)), b) * xa.eps(X)
    R = scale * norms * identity
    for s in (shift, shift, shift, 0.0, 0.0):
        upper = xa.adjoint(xt.unchecked_cholesky(gram_matrix(X) + s * identity))
        X, R = xt.upper_solve(upper, X, left=False), upper @ R
    return QRResult(X, R)


def is_mixed(P: Array) -> bool:
    """Whether a tall panel, in single precision, has its Gram matrices in double."""
    return tuning(P).mixed and P.shape[-2] >= 2 * P.shape[-1] > 0 and xa.eps(P) > 1e-10


def _mixed_passes(X: Array) -> tuple[Array, Array, Array]:
    """``X = Q R₂ R₁`` of a panel in double precision, up to an eps of single; for every rank.

    I. Yamazaki, S. Tomov and J. Dongarra, Mixed-precision Cholesky QR factorization and its case
    studies on multicore CPU with multiple GPUs, 2015, doi:10.1137/14M0973773. A Gaussian matrix of
    a quarter of an eps in the first rows gives every panel full rank and a least singular value σ
    of about eps. The first Gram matrix, in double precision, is lifted by its rounding error s;
    then the least singular value is about σ/√s, over 1e-4 for up to 10⁶ rows and 512 columns, which
    the second one resolves. X is overwritten.
    """
    identity, lifted, noise = _constants_of(X, "identity", "lifted", "noise")
    sizes = xa.array_namespace(X).linalg.vector_norm(X, axis=-2, keepdims=True)
    top = X[..., : 2 * X.shape[-1], :]
    top += noise * (sizes + 1e-60)  # also where columns are zero
    first = xa.adjoint(xt.unchecked_cholesky(xa.adjoint_matmul(X, X) * lifted))
    X = X @ xt.upper_solve(first, identity, left=False)
    second = xa.adjoint(xt.unchecked_cholesky(xa.adjoint_matmul(X, X)))
    return X @ xt.upper_solve(second, identity, left=False), first, second


def mixed_svd(C: Array) -> tuple[Array, Array, Array, None, Array]:
    """The SVD ``C = P diag(S) Uᴴ`` of such a panel, and R with ``C U ≈ P R``.

    Returns R, U, S, None and P, the fields of a SmallSVD. U holds the eigenvectors of ``CᴴC`` in
    double precision: the columns of CU are orthogonal to √eps of double, so that their QR is an SVD
    to rounding in single precision, for every rank.
    """
    xp = xa.array_namespace(C)
    X = _in_double(C)
    U = xp.linalg.eigh(-xa.adjoint_matmul(X, X))[1]  # the largest first
    P, first, second = _mixed_passes(X @ U)
    R = second @ first
    S = xp.linalg.diagonal(R)
    S = xp.sort(xp.real(S) if xa.is_complex(S) else S, axis=-1, descending=True)
    return _as(C, R), _as(C, U), xp.astype(S, xp.float32), None, _as(C, P)


def _mixed_conditioned(P: Array) -> Array:
    """The first pass of `_mixed_passes`, without noise."""
    X = _in_double(P)
    identity, lifted, floor = _constants_of(X, "identity", "lifted", "floor")
    upper = xa.adjoint(xt.unchecked_cholesky(xa.adjoint_matmul(X, X) * lifted + floor))
    return _as(P, X @ xt.upper_solve(upper, identity, left=False))


def _double_of(P: Array) -> Any:
    xp = xa.array_namespace(P)
    return xp.complex128 if xa.is_complex(P) else xp.float64


def _in_double(P: Array) -> Array:
    return xa.array_namespace(P).astype(P, _double_of(P))


def _as(P: Array, X: Array) -> Array:
    """X in the dtype of P."""
    return xa.array_namespace(X).astype(X, P.dtype)


def _constants_of(X: Array, *names: str) -> list[Array]:
    *_, p, b = X.shape
    kind = 1 << p.bit_length(), b, xa.array_namespace(X), X.dtype, xa.device_of(X)
    return [_constant(name, *kind) for name in names]


def _constant(name: str, p: int, b: int, xp: Namespace, dtype: Any, device: Any) -> Array:
    """A constant that panels of b columns share.

    ``"identity"``; ``"floor"``, the identity times 1e-290; ``"noise"``, a Gaussian 2b×b matrix with
    columns of norm about NOISE; ``"lifted"``, by which the entries of a Gram matrix are multiplied,
    so that its diagonal grows by its rounding error.
    """
    return _kept_constant(name, p, b, xp, dtype, device)


# torch.compile treats the result as a constant.
_constant._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=48)
def _kept_constant(name: str, p: int, b: int, xp: Namespace, dtype: Any, device: Any) -> Array:
    if name == "noise":
        Z = np.random.default_rng(7).standard_normal((2 * b, b)) * NOISE / (2 * b) ** 0.5
        return xp.astype(xp.asarray(Z, device=device), dtype)
    identity = xp.eye(b, dtype=dtype, device=device)
    if name == "lifted":
        return 1.0 + _rounding_of_gram(p, b) * xa.eps(identity) * identity
    return identity if name == "identity" else 1e-290 * identity


def defect(Q: Array, *, is_panel: bool = False) -> Array:
    """``QᴴQ − I``. For a panel the identity is cached, and the dtype that of `wide_gram_matrix`."""
    b, gram = Q.shape[-1], wide_gram_matrix(Q)
    if is_panel:
        return gram - _constants_of(gram, "identity")[0]
    return _as(Q, gram - xa.eye(b, b, like=gram))


def _rounding_of_gram(p: int, b: int) -> float:
    """A bound, in eps, on the norm of the rounding error of a Gram matrix of b unit columns.

    Sums of p numbers of random signs are off by √p eps. Sums of equal numbers are biased, by up to
    0.4 p eps, but differently for each entry, and a random b×b matrix has norm 2√b.
    """
    return 8.0 * (b + p**0.5) + b**0.5 * p


def gram_matrix(X: Array) -> Array:
    """``XᴴX`` without the bias of long sums (see `adjoint_matmul`)."""
    return _as(X, wide_gram_matrix(X))


def wide_gram_matrix(X: Array) -> Array:
    """``XᴴX``: on a CPU in double precision if X is in single, else by blocks of about √p rows.

    On a GPU by blocks of GRAM_ROWS rows, in one batched product.
    """
    xp, (*batch, p, b) = xa.array_namespace(X), X.shape
    if xa.is_of_a_gpu(X) or xa.is_traced(X):
        return xa.batched_adjoint_matmul(X, X, max(GRAM_ROWS, 4 * b))
    # another library may have no double precision
    dtype = _double_of(X) if xa.is_numpy_namespace(xp) or xa.is_torch_namespace(xp) else X.dtype
    rows = max(64, math.isqrt(p)) if dtype == X.dtype else DOUBLE_ROWS
    total = xp.zeros((*batch, b, b), dtype=dtype, device=xa.device_of(X))
    for part in xa.slices(p, rows):
        block = xp.astype(X[..., part, :], dtype)
        total += xa.adjoint(block) @ block
    return total
