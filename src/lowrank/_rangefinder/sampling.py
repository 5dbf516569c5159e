"""Samples of the residual: power iterations, and scaled products where others overflow."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from lowrank import _array as xa
from lowrank._array import Array
from lowrank._linalg.panel import conditioned, orthonormal, orthonormalize
from lowrank._operators import Operator
from lowrank._rangefinder.basis import Basis
from lowrank._rangefinder.residuals import FullSVD, Sampled
from lowrank._rangefinder.state import Problem, State
from lowrank.results import QRResult

Product = Callable[[Array], Array]


def iterated(
    Q: Array,
    matmat: Product,
    rmatmat: Product,
    power_iterations: int,
    *,
    domain_qr: Callable[[Array], QRResult] = orthonormalize,
    krylov: bool = False,
    columns: int | None = None,
    factors: list[Array] | None = None,
) -> Array:
    """Orthonormal basis of the range of ``(A Aᴴ)^q Q``, for an orthonormal Q.

    (Halko, Martinsson & Tropp, Finding structure with randomness, 2011, doi:10.1137/090771806,
    Algorithm 4.4.) It reads nothing from a device, so torch compiles it without a graph break, and
    a CUDA graph can capture it.

    With `krylov`, of ``[(A Aᴴ)^q Q, …, A Aᴴ Q, Q]``, the best block first; the first `columns`
    columns are returned. Each block is orthonormal, but the blocks are not orthogonal to one
    another before the last QR. If they are nearly dependent, the last columns of that QR are
    rounding errors, and power iteration alone has found the range.

    If a list `factors` is given, the triangular factors of all QRs are appended to it: their
    product has the singular values of ``(A Aᴴ)^q Q``. (Musco & Musco, Randomized block Krylov
    methods for stronger and faster approximate singular value decomposition, 2015,
    arXiv:1504.05477, Algorithm 2.)
    """
    domain, last = without_factor(domain_qr, factors), without_factor(orthonormalize, factors)
    between = last
    if factors is None and not krylov:  # between products, well-conditioned columns are enough
        between = conditioned
        domain = conditioned if domain_qr is orthonormalize else domain
    spaces: list[Array] = []
    for left in reversed(range(power_iterations)):
        if krylov:
            spaces.insert(0, Q)
        Q = domain(rmatmat(Q))
        Q = (between if left else last)(matmat(Q))
    if krylov:
        Q = orthonormal(xa.array_namespace(Q).concat([Q, *spaces], axis=-1))
    return Q if columns is None else xa.leading(Q, columns)


def without_factor(
    qr: Callable[[Array], QRResult], factors: list[Array] | None
) -> Callable[[Array], Array]:
    """A function that returns Q alone; R is appended to `factors`, if given."""
    if factors is None:
        return orthonormal if qr is orthonormalize else lambda X: qr(X).Q

    def Q_of(X: Array) -> Array:
        Q, R = qr(X)
        factors.append(R)
        return Q

    return Q_of


NOT_FINITE = (
    "a product of `A` with the test matrix is not finite: it overflows, or `A` or the test matrix "
    "holds NaN or Inf. Check both, or divide `A` by a constant."
)


def finite(number: float) -> float:
    """The number, which depends on products with A; a ValueError if it is not finite."""
    if not math.isfinite(number):
        raise ValueError(NOT_FINITE)
    return number


@dataclass(frozen=True, slots=True)
class SampledPanel:
    """An orthonormal panel from a sample of the residual, not yet checked to be finite.

    `sums` are the sums of its entries and of those of the products before it: a sum is not finite
    if a term is not. (The panel alone would not do: LAPACK's QR may hide NaN.) A sum of finite
    terms may overflow too; then the products are scaled without need.
    """

    problem: Problem
    state: State
    Q: Array
    sums: list[Array]  # none without `check_finite`
    redraw: Callable[[State], "SampledPanel"]

    @property
    def is_costly_to_check(self) -> bool:
        """Whether reading the sums waits for a device, and can be deferred to the read of ‖AᴴQ‖."""
        A = self.state.A
        is_measured = A.norm is not None and A.domain is None
        return is_measured and bool(self.sums) and xa.is_of_a_gpu(self.Q)

    @property
    def is_finite(self) -> bool:
        """Whether all sums are finite: one read."""
        finite = all(map(math.isfinite, xa.read(*self.sums)))
        return not self.sums or bool(self.state.A.agreed(float(finite)))

    def checked(self) -> tuple[State, Array]:
        """The panel, checked to be finite, and its state; retried with scaling if it is not."""
        return (self.state, self.Q) if self.is_finite else self.retried_with_scaling()

    def retried_with_scaling(self) -> tuple[State, Array]:
        """The panel from scaled products; a ValueError if that is not finite either."""
        found = self.redraw(measured(self.problem, self.state))
        if found.state.A.is_stack:
            # Keep the finite members of the stack: the scale of the others may be too small here.
            xp = xa.array_namespace(self.Q)
            was_finite = xp.all(xp.isfinite(self.Q), axis=(-2, -1), keepdims=True)
            Q = xp.where(was_finite, self.Q, found.Q)
            found = replace(self, Q=Q, sums=[xa.flag(Q)])
        if not found.is_finite:
            raise ValueError(NOT_FINITE)
        return found.state, found.Q


def sampled_panel(problem: Problem, state: State, columns: int) -> SampledPanel:
    """An orthonormal panel of `columns` columns, from a sample of the residual.

    If all n columns of a tall A are asked for at once, the test matrix is the identity: a square
    Gaussian matrix is ill-conditioned, and the directions that it makes small would be lost in
    rounding. If only the last of n columns are asked for, a power iteration helps instead.
    """
    q, draw, redraw = problem.power_iterations or 0, problem.source.draw, problem.source.redraw
    m, n = state.A.shape[-2:]
    if state.rank + columns == n < m and problem.source.is_free and state.A.test_rows == n:
        q = 0 if state.rank == 0 else max(1, q)
        if state.rank == 0:
            draw = redraw = partial(xa.eye, n, like=state.A.empty(0))
    width = -(-columns // (q + 1)) if problem.krylov else columns
    spanned = orthonormalized if q == 0 or problem.krylov else spanning

    def made(draw: Callable[[int], Array], state: State) -> SampledPanel:
        Omega = draw(width)
        if Omega.shape[-1] < width:
            missing = width - Omega.shape[-1]
            raise ValueError(f"`test_matrix` needs {missing} more columns; pass a wider one.")
        sums: list[Array] = []
        state, sample = multiplied(problem, state, Omega, sums)
        del Omega
        Q = iterated_sample(problem, state, spanned(sample), q, columns=columns, sums=sums)
        if problem.check_finite:
            sums.append(xa.flag(Q))
        return SampledPanel(problem, state, Q, sums, partial(made, redraw))

    return made(draw, state)


def multiplied(
    problem: Problem, state: State, Omega: Array, sums: list[Array] | None = None
) -> tuple[State, list[Array]]:
    """``E Ω``, in a list: the consumer pops it, so that no one else keeps its memory.

    The first product of an operator decides the library, dtype and device of all others.
    """
    assert not isinstance(state.residual, FullSVD)
    A, Y = state.A, _product(problem, sums, state.residual.matmat, Omega)
    if A.norm is None and state.rank == 0:
        xp, device = xa.array_namespace(Y), xa.device_of(Y)
        if (xp, device, Y.dtype) != (A.xp, A.device, A.dtype):
            A = replace(A, xp=xp, dtype=Y.dtype, device=device)
            problem.source.move(A)
            state = replace(state, A=A, residual=Sampled(A, Basis(A.empty(A.shape[-2]))))
    return state, [Y]


def _product(problem: Problem, sums: list[Array] | None, multiply: Product, X: Array) -> Array:
    """A counted product; the sum of its entries is appended to `sums`, if given."""
    problem.work.add(int(X.shape[-1]))
    Y = multiply(X)
    if sums is not None and problem.check_finite:
        sums.append(xa.flag(Y))
    return Y


def iterated_sample(
    problem: Problem,
    state: State,
    basis: list[Array],
    q: int,
    *,
    columns: int | None = None,
    sums: list[Array] | None = None,
    factors: list[Array] | None = None,
) -> Array:
    """An orthonormal basis after q power iterations from `basis`, which is popped from its list."""
    residual = state.residual
    assert not isinstance(residual, FullSVD)
    product = partial(_product, problem, sums)
    return iterated(
        basis.pop(), partial(product, residual.matmat), partial(product, residual.rmatmat), q,
        domain_qr=domain_qr(state.A), krylov=problem.krylov, columns=columns, factors=factors,
    )  # fmt: skip


def orthonormalized(sample: list[Array], factors: list[Array] | None = None) -> list[Array]:
    """An orthonormal basis of the sample; both in lists that pass them on (see `multiplied`)."""
    return [without_factor(orthonormalize, factors)(sample.pop())]


def spanning(sample: list[Array]) -> list[Array]:
    """Well-conditioned columns that span the sample, for the next product."""
    return [conditioned(sample.pop())]


def domain_qr(A: Operator) -> Callable[[Array], QRResult]:
    """The QR for products with Aᴴ, whose rows may be sharded over processes."""
    return orthonormalize if A.domain is None else A.domain.orthonormalize


def measured(problem: Problem, state: State, norm: float | None = None) -> State:
    """The state with ‖A‖_F, which is read if not given; scales A if products could overflow.

    Raises a ValueError if A holds NaN or Inf.
    """
    A = state.A
    if A.norm is None:
        raise ValueError(NOT_FINITE)
    problem.work.add(0)
    norm = A.agreed(A.norm() if norm is None else norm)
    if not math.isfinite(norm):
        if math.isfinite(A.max_abs()):
            message = "the norm of `A` exceeds the largest float; divide `A` by a constant."
        else:
            message = "`A` holds NaN or Inf; replace or remove these entries."
        raise ValueError(message)
    problem.source.salt_seed(salt=norm)
    limits, scale = A.xp.finfo(A.dtype), 1.0
    largest, smallest = float(limits.max), float(limits.smallest_normal)
    _, exponent = math.frexp(largest)  # 128 for float32, 1024 for float64
    if norm > largest * 2.0**-32:
        scale = 2.0 ** (-exponent // 2)
    elif 0.0 < norm < smallest / float(limits.eps):
        # Scale to norm ≈ 1, without overflowing what is multiplied.
        scale = 2.0 ** min(-math.frexp(norm)[1], exponent - 16)
    if scale != 1.0:
        A = _scaled(A, scale)
        if isinstance(state.residual, Sampled):
            state = replace(state, residual=replace(state.residual, A=A))
    limit = exponent - 2  # keeps the scale a normal number
    unit = 2.0 ** max(-limit, min(-math.frexp(norm)[1], limit)) if norm > 0.0 else 1.0
    known = norm if problem.norm == "fro" or norm == 0.0 else state.norm_A
    return replace(state, A=A, scale=scale, explicit_scale=unit, frobenius=norm, norm_A=known)


def with_salted_seed(problem: Problem, state: State) -> State:
    """Salt the seed of the test matrices that certify with the norm of one product with E.

    Otherwise a caller who deflates A with a basis and passes the same seed again would sample the
    rest with the test matrix that it annihilates. The norm of A alone is not enough as a salt: it
    may be the same before and after.
    """
    omega = problem.source.gaussian_vector()
    if omega is not None:
        state, sample = multiplied(problem, state, omega)
        problem.source.salt_seed(finite(float(xa.safe_norm(sample.pop()))))
    return replace(state, is_salted=True)


def _scaled(A: Operator, scale: float) -> Operator:
    """A with scaled products; `norm` is still that of the unscaled A."""
    matmat, rmatmat = A.matmat, A.rmatmat
    return replace(A, matmat=lambda X: matmat(X * scale), rmatmat=lambda Y: rmatmat(Y * scale))
