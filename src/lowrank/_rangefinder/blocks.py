"""The blocks of a growing basis: their width, their power iterations, and the error to reach."""

import math
from dataclasses import replace
from itertools import pairwise

from lowrank._array import Array, array_namespace, eps, is_complex, leading, norms, safe_norm
from lowrank._array.tuning import GROWTH, tuning
from lowrank._linalg.panel import conditioned, orthonormal
from lowrank._operators import Operator
from lowrank._rangefinder.residuals import ByEnergies, Explicit, FullSVD, Sampled
from lowrank._rangefinder.sampling import iterated_sample, multiplied, orthonormalized, spanning
from lowrank._rangefinder.state import Problem, State, StopRule


def goal_of(problem: Problem, state: State, share: float | None) -> float:
    """The part of the tolerance at which growth ends."""
    if share is None or state.rank == 0:  # without a basis there is nothing to truncate
        return 1.0
    if isinstance(state.residual, FullSVD):
        return share
    is_sampled = problem.norm == "spectral" or isinstance(state.residual, Sampled)
    if is_sampled or state.A.costly_passes:  # more columns in such passes cost little
        return share * GROWTH.goal_of_samples
    is_accurate = continues(problem, state) or powers_of(problem, state) > 0
    return share * (GROWTH.goal if is_accurate else GROWTH.goal_without_powers)


def powers_of(problem: Problem, state: State) -> int:
    """Power iterations of a block."""
    if problem.power_iterations is not None:
        return problem.power_iterations
    if problem.norm == "spectral":
        return 1
    if isinstance(state.residual, Explicit):
        most = tuning(state.residual.array).power_iterations
        return most if _decays_slowly(state) else min(1, most)
    return int(isinstance(state.residual, ByEnergies) and not state.A.costly_passes)


def _decays_slowly(state: State) -> bool:
    """Whether, after some block so far, not even doubling the basis could remove what was left.

    A column of that block removed the energy ``(e₀² − e₁²)/b``, so that k more columns remove at
    most k times that. For singular values j^{−p} the remaining energy is ``1/(2p − 1)`` times that
    much.
    """
    for before, last in pairwise(state.history):
        if before.rank < last.rank and last.estimate > 0.0:
            ratio = before.estimate / last.estimate
            if last.rank - before.rank > GROWTH.slow * last.rank * (ratio * ratio - 1.0):
                return True
    return False


def panel(
    problem: Problem, state: State, rule: StopRule, goal: float, *, truncates: bool
) -> tuple[State, Array | None]:
    """A panel for the basis, from the pending sample or a fresh one; None if none can be drawn."""
    most, q = rule.limit - state.rank, powers_of(problem, state)
    if state.pending is not None and problem.norm == "spectral":
        return state, leading(state.pending, most)
    depth = q + 1 if problem.krylov else 1
    if state.pending is not None:
        basis = orthonormalized([leading(state.pending, -(-most // depth))])
        state = replace(state, pending=None)
        return state, iterated_sample(problem, state, basis, q, columns=most)
    continuing = truncates and state.rank > 0 and continues(problem, state)
    width = min(_width(problem, state, goal, may_widen=not continuing), -(-most // depth))
    if continuing:
        Q = _continued(problem, state, width)
        if Q is not None:
            return state, Q
    Omega = problem.source.draw(width)
    if Omega.shape[-1] == 0:
        return state, None
    state, sample = multiplied(problem, state, Omega)
    if q > 0 and not problem.krylov and not _reads_are_free(state.A):
        return state, iterated_sample(problem, state, spanning(sample), q, columns=most)
    factors: list[Array] = []
    basis = orthonormalized(sample, factors)
    if q > 0 and problem.power_iterations is None and _reads_are_free(state.A):
        steep = GROWTH.steep if truncates else GROWTH.steep_of_basis
        least = int(continuing)  # a new Krylov space starts from a good block
        q = max(least, _powers_of_block(state, factors[0], q, goal * state.measured_scale, steep))
    return state, iterated_sample(problem, state, basis, q, columns=most)


def continues(problem: Problem, state: State) -> bool:
    """Whether blocks continue a Krylov space: by default, if the residual is an array."""
    if problem.power_iterations is not None or problem.krylov or problem.norm == "spectral":
        return False
    is_explicit = isinstance(state.residual, Explicit)
    return is_explicit and problem.source.is_free and _reads_are_free(state.A)


def _continued(problem: Problem, state: State, width: int) -> Array | None:
    """A panel that continues the Krylov space of the last block; None if it promises too little.

    Let ``B_j = Q_jᴴA`` be the rows that the last block Q_j added to B, and V orthonormal columns
    in their span. The next panel spans ``E V``, the part of ``A Aᴴ Q_j`` outside the basis. So the
    basis spans ``[Q₁, A Aᴴ Q₁, (A Aᴴ)² Q₁, …]``, as in block Lanczos bidiagonalization (Hallman, A
    block bidiagonalization method for fixed-accuracy low-rank matrix approximation, 2022,
    doi:10.1137/21M1397866), here fully orthogonal by reflectors and with a known error. It holds
    what power iterations of Q₁ would find (Musco & Musco, 2015, arXiv:1504.05477, see `iterated`),
    and takes one product with E for each block, not 1 + 2q.

    Of equal singular values, E V holds no new ones. So the last columns of a block are those of a
    Gaussian Ω. If those of the last block took far more energy each than its first ones, directions
    are left that the Krylov space does not see, and a new one is started. (That shows if the panel
    has 24b rows or more; otherwise the reflectors mix the rows of a block.) So it is if E V is
    small: for c random orthonormal columns V the mean of ``‖E V‖²`` is ``‖E‖² c/n``.
    """
    residual, A = state.residual, state.A
    assert isinstance(residual, Explicit)
    rows = residual.last_rows()
    columns, old = (b - math.ceil(GROWTH.fresh * b) for b in (width, rows.shape[-1]))
    if min(columns, old) < 1:
        return None
    size, fresh = norms(rows[:, :old], rows[:, old:])
    if fresh**2 * old > GROWTH.missed * size**2 * (rows.shape[-1] - old):
        return None
    V = leading(conditioned(rows), columns)
    columns = V.shape[-1]
    Omega = problem.source.draw(width - columns)
    state, sample = multiplied(problem, state, A.xp.concat([V, Omega], axis=-1))
    size = float(safe_norm(leading(sample[0], columns)))
    left = state.history[-1].estimate * state.measured_scale
    if size < left * math.sqrt(GROWTH.restart * columns / A.shape[-1]):
        return None
    return orthonormal(sample.pop())


def _powers_of_block(state: State, R: Array, q: int, goal: float, steep: float) -> int:
    """Power iterations for a sample with the triangular factor R."""
    middle, end = _errors_within(R)
    if end <= max(GROWTH.enough * goal, steep * middle):
        return 0
    if state.rank == 0 and end >= GROWTH.flat * middle:
        before = state.history[-1].estimate * state.measured_scale
        return 1 if end >= GROWTH.level * before else tuning(R).power_iterations
    return q


def _reads_are_free(A: Operator) -> bool:
    """Whether a number can be read without waiting for a device."""
    return tuning(A.empty(0)).is_checked


def _errors_within(R: Array) -> tuple[float, float]:
    """Estimates of the error with half of a sample in the basis, and with all of it.

    R is the triangular factor of the sample. Its j-th diagonal entry is the part of the j-th
    column orthogonal to the columns before it: ``‖(I − PPᴴ)Eω‖`` for a basis P of those. Its
    square is unbiased for ``‖(I − PPᴴ)E‖_F²``.
    """
    xp, b = array_namespace(R), R.shape[-1]
    entries, few = xp.linalg.diagonal(R), max(1, b // 4)
    start = max(0, b // 2 - few // 2)
    middle = entries[start : start + few]
    return tuple(  # type: ignore[return-value]
        float(xp.linalg.vector_norm(part)) / math.sqrt(few) for part in (middle, entries[b - few :])
    )


def _width(problem: Problem, state: State, goal: float, *, may_widen: bool) -> int:
    """Columns of a block."""
    if problem.block_size is not None:
        return problem.block_size
    if isinstance(state.residual, Sampled):
        return width_of_sample(state)
    if state.A.costly_passes:
        missing = GROWTH.margin * missing_of_power_law(state, goal)
        return int(min(max(GROWTH.wide, state.rank), max(GROWTH.wide // 4, missing)))
    width = tuning(state.A.empty(0)).width
    if len(state.history) < 2:
        return width
    widest = 2.0 * width if may_widen and len(state.history) > 2 else width
    missing = min(GROWTH.margin * missing_columns(problem, state, goal)[1], widest)
    return int(max(width // 2, 8 * math.ceil(missing / 8)))


def missing_of_power_law(state: State, goal: float) -> float:
    """Missing columns, if the singular values are ``j^{−p}``, j = 1, …, min(m, n).

    With ``x = log(j/k)`` the energy of some of them is ``∫ exp(−s x) dx``, s = 2p − 1. The last
    block and what it left over give s.
    """
    last = [look for look in state.history[-2:] if look.rank > 0]
    if last and last[-1].estimate <= goal:
        return 0.0
    if len(last) < 2 or not 0.0 < goal < last[1].estimate < last[0].estimate:
        return math.inf
    k, fall = last[1].rank, min(last[0].estimate / last[1].estimate, 1e100) ** 2 - 1.0
    start, end = math.log(last[0].rank / k), math.log(state.full / k)

    def energy(x: float, s: float) -> float:
        """Of the singular values between k and x."""
        return -math.expm1(-s * x) / s

    low, high = -1.0, 500.0 / max(5.0, -start)  # constant, and falling as fast as floats allow
    for _ in range(40):
        s = 0.5 * (low + high) or 1e-9
        low, high = (s, high) if -energy(start, s) < fall * energy(end, s) else (low, s)
    # energy(end) − energy(x) = part · energy(end), solved for exp(−s x)
    part, all_of_it = (goal / last[1].estimate) ** 2, math.exp(-high * end)
    return k * math.expm1(-math.log(max(part + (1.0 - part) * all_of_it, 1e-300)) / high)


def width_of_sample(state: State) -> int:
    """Columns of a sample that measures the error.

    64 real or 32 complex columns bound it within a factor of 2.02 at 1e-9. Samples widen with the
    basis, so that they stay few and their products wide.
    """
    least = 32 if is_complex(state.A.empty(0)) else 64
    return least * (1 + state.rank // (8 * least))


def missing_columns(problem: Problem, state: State, target: float) -> tuple[float, float]:
    """Missing columns: the least possible number, and the number at the rate of the last block.

    The last block lowered the square of the error by ``e₀² − e₁²``, and later blocks lower it by
    less. So at least ``(e₁² − target²)/(e₀² − e₁²)`` such blocks are missing; if all singular
    values are equal, exactly that many. Usually the error falls at the same rate or more slowly,
    and more columns are needed. In the spectral norm a cluster of singular values can keep the
    error from falling, so the least number is 0.
    """
    last = [look for look in state.history[-2:] if look.estimate > 0.0]
    if len(last) < 2 or not last[0].rank < last[1].rank:
        return 0.0, math.inf
    columns, e0, e1 = last[1].rank - last[0].rank, last[0].estimate, last[1].estimate
    if e1 <= target:
        return 0.0, 0.0
    fall = max(1.0 - e1 / e0, eps(state.A.empty(0)))
    at_that_rate = (
        math.inf if target == 0.0 else columns * math.log(e1 / target) / -math.log1p(-fall)
    )
    if problem.norm == "spectral":
        return 0.0, at_that_rate
    by_energy = (e1 - target) / e0 * (e1 + target) / e0 / (fall * (2.0 - fall))
    return columns * by_energy, max(columns * by_energy, at_that_rate)
