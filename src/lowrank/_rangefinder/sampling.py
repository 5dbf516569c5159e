"""Samples of the residual, through power iterations, and what is done where they overflow."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from lowrank._array import (
    Array,
    array_namespace,
    device_of,
    flag,
    is_of_a_gpu,
    leading,
    read,
    safe_norm,
)
from lowrank._operator import Operator
from lowrank._panel import QR, conditioned, orthonormal, orthonormalize
from lowrank._rangefinder.basis import Basis
from lowrank._rangefinder.residuals import FullSVD, Sampled
from lowrank._rangefinder.state import Problem, State

Product = Callable[[Array], Array]


def iterated(
    Q: Array,
    matmat: Product,
    rmatmat: Product,
    power_iterations: int,
    *,
    domain_qr: Callable[[Array], QR] = orthonormalize,
    krylov: bool = False,
    columns: int | None = None,
    factors: list[Array] | None = None,
) -> Array:
    """Orthonormal basis of the range of ``(A Aᴴ)^q Q``, for an orthonormal Q.

    (Halko, Martinsson & Tropp, Finding structure with randomness, 2011, doi:10.1137/090771806,
    Algorithm 4.4.) A function of arrays that asks nothing of a device: torch compiles it without a
    graph break, and a CUDA graph captures it.

    With `krylov`, of ``[(A Aᴴ)^q Q, …, A Aᴴ Q, Q]``, the best first, of which so many `columns` are
    given. The blocks are orthonormal, but not to one another before the end. Where they are nearly
    dependent, the columns that the last QR takes for new are rounding errors; there power iteration
    alone has found what there is.

    The triangular `factors` that were divided out are appended to a list, where one is given:
    their product has the singular values of ``(A Aᴴ)^q Q``. (Musco & Musco, Randomized block Krylov
    methods for stronger and faster approximate singular value decomposition, 2015,
    arXiv:1504.05477, Algorithm 2.)
    """
    domain, last = without_factor(domain_qr, factors), without_factor(orthonormalize, factors)
    between = last
    if factors is None and not krylov:  # what is only multiplied need not be orthonormal
        between = conditioned
        domain = conditioned if domain_qr is orthonormalize else domain
    spaces: list[Array] = []
    for left in reversed(range(power_iterations)):
        if krylov:
            spaces.insert(0, Q)
        Q = domain(rmatmat(Q))
        Q = (between if left else last)(matmat(Q))
    if krylov:
        Q = orthonormal(array_namespace(Q).concat([Q, *spaces], axis=-1))
    return Q if columns is None else leading(Q, columns)


def without_factor(
    qr: Callable[[Array], QR], factors: list[Array] | None
) -> Callable[[Array], Array]:
    """The orthonormal factor alone; the triangular one is kept where it is wanted."""
    if factors is None:
        return orthonormal if qr is orthonormalize else lambda X: qr(X).Q

    def Q_of(X: Array) -> Array:
        Q, R = qr(X)
        factors.append(R)
        return Q

    return Q_of


NOT_FINITE = (
    "a product of `A` with the test matrix is not finite: it overflows, or one of them holds NaN "
    "or Inf."
)


@dataclass(frozen=True, slots=True)
class SampledPanel:
    """An orthonormal panel from a sample of the residual of a state.

    Sums tell whether it and the products that led to it are finite, which LAPACK's QR may hide:
    they are not where a term is not. One may leave the range of the dtype alone; then the products
    are scaled in vain.
    """

    problem: Problem
    state: State
    Q: Array
    sums: list[Array]  # none without `check_finite`
    redraw: Callable[[State], "SampledPanel"]

    @property
    def is_costly_to_check(self) -> bool:
        """Whether to read them takes time, and may wait for a product of an array with Q."""
        A = self.state.A
        return bool(self.sums) and is_of_a_gpu(self.Q) and A.norm is not None and A.domain is None

    @property
    def is_finite(self) -> bool:
        """What the sums tell: one read."""
        finite = all(map(math.isfinite, read(*self.sums)))
        return not self.sums or bool(self.state.A.agreed(float(finite)))

    def checked(self) -> tuple[State, Array]:
        """The panel of finite numbers, and its state."""
        return (self.state, self.Q) if self.is_finite else self.retried_with_scaling()

    def retried_with_scaling(self) -> tuple[State, Array]:
        """The same from products that are scaled, if they could leave the range."""
        found = self.redraw(measured(self.problem, self.state))
        if found.state.A.is_stack:
            # Members that were finite stay: the scale of the others may be too small there.
            xp = array_namespace(self.Q)
            was_finite = xp.all(xp.isfinite(self.Q), axis=(-2, -1), keepdims=True)
            Q = xp.where(was_finite, self.Q, found.Q)
            found = replace(self, Q=Q, sums=[flag(Q)])
        if not found.is_finite:
            raise ValueError(NOT_FINITE)
        return found.state, found.Q


def sampled_panel(problem: Problem, state: State, columns: int) -> SampledPanel:
    """An orthonormal panel of so many columns, from a sample of the residual.

    All n columns of a tall matrix are those of A itself: a square test matrix is ill-conditioned,
    and what it makes small is lost in rounding. The last of them need a power iteration for that.
    """
    q, draw, redraw = problem.power_iterations or 0, problem.source.draw, problem.source.redraw
    m, n = state.A.shape[-2:]
    if state.rank + columns == n < m and problem.source.is_free and state.A.test_rows == n:
        q = 0 if state.rank == 0 else max(1, q)
        if state.rank == 0:
            draw = redraw = partial(_identity, state.A)
    width = -(-columns // (q + 1)) if problem.krylov else columns
    spanned = orthonormalized if q == 0 or problem.krylov else spanning

    def made(draw: Callable[[int], Array], state: State) -> SampledPanel:
        Omega = draw(width)
        if Omega.shape[-1] < width:
            raise ValueError(f"`test_matrix` has {width - Omega.shape[-1]} columns too few.")
        sums: list[Array] = []
        state, sample = multiplied(problem, state, Omega, sums)
        del Omega
        Q = iterated_sample(problem, state, spanned(sample), q, columns=columns, sums=sums)
        if problem.check_finite:
            sums.append(flag(Q))
        return SampledPanel(problem, state, Q, sums, partial(made, redraw))

    return made(draw, state)


def _identity(A: Operator, columns: int) -> Array:
    return A.xp.eye(columns, dtype=A.dtype, device=A.device)


def multiplied(
    problem: Problem, state: State, Omega: Array, sums: list[Array] | None = None
) -> tuple[State, list[Array]]:
    """``E Ω``; in a list, so that the caller can hand it on without keeping it.

    The first product of an operator tells where all others live.
    """
    assert not isinstance(state.residual, FullSVD)
    A, Y = state.A, _product(problem, sums, state.residual.matmat, Omega)
    if A.norm is None and state.rank == 0:
        xp, device = array_namespace(Y), device_of(Y)
        if (xp, device, Y.dtype) != (A.xp, A.device, A.dtype):
            A = replace(A, xp=xp, dtype=Y.dtype, device=device)
            problem.source.move(A)
            state = replace(state, A=A, residual=Sampled(A, Basis(A.empty(A.shape[-2]))))
    return state, [Y]


def _product(problem: Problem, sums: list[Array] | None, multiply: Product, X: Array) -> Array:
    """A product that is counted, and its sum where that is wanted."""
    problem.work.add(int(X.shape[-1]))
    Y = multiply(X)
    if sums is not None and problem.check_finite:
        sums.append(flag(Y))
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
    """The orthonormal basis of a sample, taken out of a list, after q power iterations."""
    residual = state.residual
    assert not isinstance(residual, FullSVD)
    product = partial(_product, problem, sums)
    return iterated(
        basis.pop(), partial(product, residual.matmat), partial(product, residual.rmatmat), q,
        domain_qr=domain_qr(state.A), krylov=problem.krylov, columns=columns, factors=factors,
    )  # fmt: skip


def orthonormalized(sample: list[Array], factors: list[Array] | None = None) -> list[Array]:
    """An orthonormal basis of the sample, each in a list that gives it away."""
    return [without_factor(orthonormalize, factors)(sample.pop())]


def spanning(sample: list[Array]) -> list[Array]:
    """Columns that span the sample, for the products that follow."""
    return [conditioned(sample.pop())]


def domain_qr(A: Operator) -> Callable[[Array], QR]:
    """QR of a product with Aᴴ, of which each process may have some rows."""
    return orthonormalize if A.domain is None else A.domain.orthonormalize


def measured(problem: Problem, state: State, norm: float | None = None) -> State:
    """Read ‖A‖_F, if it is not given; reject NaN and Inf; scale products that leave the range."""
    A = state.A
    if A.norm is None:
        raise ValueError(NOT_FINITE)
    problem.work.add(0)
    norm = A.agreed(A.norm() if norm is None else norm)
    if not math.isfinite(norm):
        if math.isfinite(A.max_abs()):
            message = "the norm of `A` exceeds the largest float; divide `A` by a constant."
        else:
            message = "`A` holds NaN or Inf; a range finder needs finite entries."
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
    room = exponent - 2  # which keeps it a normal number
    unit = 2.0 ** max(-room, min(-math.frexp(norm)[1], room)) if norm > 0.0 else 1.0
    known = norm if problem.norm == "fro" or norm == 0.0 else state.norm_A
    return replace(state, A=A, scale=scale, explicit_scale=unit, frobenius=norm, norm_A=known)


def with_salted_seed(problem: Problem, state: State) -> State:
    """Let the test matrices that certify depend on A, through one product with what is left of it.

    A caller who deflates a matrix and keeps the seed would otherwise multiply it by the very test
    matrix that it annihilates; its norm may be that of the matrix before.
    """
    omega = problem.source.gaussian_vector()
    if omega is not None:
        state, sample = multiplied(problem, state, omega)
        salt = float(safe_norm(sample.pop()))
        if not math.isfinite(salt):
            raise ValueError(NOT_FINITE)
        problem.source.salt_seed(salt)
    return replace(state, is_salted=True)


def _scaled(A: Operator, scale: float) -> Operator:
    """A with scaled products; its norm stays."""
    matmat, rmatmat = A.matmat, A.rmatmat
    return replace(A, matmat=lambda X: matmat(X * scale), rmatmat=lambda Y: rmatmat(Y * scale))
