"""Estimates of the error of a basis: from its residual, or from a fresh sample of it."""

import math
from dataclasses import replace
from typing import Any

from lowrank import _array as xa
from lowrank._array import Array
from lowrank._linalg import certificate
from lowrank._linalg.panel import defect, orthonormalize
from lowrank._operators import Operator
from lowrank._rangefinder import sampling
from lowrank._rangefinder.blocks import powers_of, width_of_sample
from lowrank._rangefinder.residuals import ByEnergies, Explicit, FullSVD, Sampled
from lowrank._rangefinder.state import Problem, State, epsilon_of
from lowrank.results import Look

# Errors up to this many eps ‖A‖ count as near rounding.
NEAR = 256.0


def estimated(problem: Problem, state: State, goal: float) -> State | None:
    """The state with one more estimate of the error; None if the test matrix has run out.

    If the energies have canceled, and cannot show that the error is below the `goal`, samples
    take over.
    """
    residual, is_svd = state.residual, isinstance(state.residual, FullSVD)
    if (
        isinstance(residual, ByEnergies)
        and residual.is_canceled
        and residual.error().bound / state.scale + base_floor(state) > goal
    ):
        residual = Sampled(residual.A, residual.basis, residual.known)
        state = replace(state, residual=residual)
    norm_bound = math.inf
    if problem.norm == "fro" and state.frobenius is not None:
        norm_bound = state.frobenius * (1.0 + 32.0 * epsilon_of(state)) + _flushed(state.A)
    if state.rank == 0 and norm_bound < math.inf:  # without a basis the error is the norm itself
        return _recorded(state, state.frobenius or 0.0, norm_bound)
    error = residual.error() if problem.norm == "fro" or is_svd else None
    if error is not None:
        estimate, bound = (value / state.measured_scale for value in error)
        estimate, bound = state.A.agreed(estimate), state.A.agreed(bound)
        return _recorded(state, estimate, min(norm_bound, bound + base_floor(state)))
    if state.rank == state.A.shape[-2]:  # the basis spans everything; nothing to sample
        if state.norm_A is None:
            state = replace(state, norm_A=_norm_below(problem, state, None))
        return _recorded(state, 0.0, floor_of(state))
    return _sampled_estimate(problem, state, norm_bound)


def _recorded(state: State, estimate: float, bound: float) -> State:
    look = Look(state.rank, min(estimate, bound), bound)
    return replace(state, history=(*state.history, look), estimated=state.residual)


def _sampled_estimate(problem: Problem, state: State, norm_bound: float) -> State | None:
    """Measure the error on a fresh sample ``E Ω``, which may join the basis afterwards.

    The sample is independent of the basis. In the spectral norm ``‖(E Eᴴ)^q E Ω‖₂`` bounds the
    (2q+1)-th power of ‖E‖₂, just as ``‖E Ω‖₂`` bounds ‖E‖₂.
    """
    state, Omega, is_identity = _test_matrix(problem, state)
    samples, of_complex = int(Omega.shape[-1]), xa.is_complex(Omega)
    if samples == 0:
        return None
    state, sample = sampling.multiplied(problem, state, Omega)
    is_unknown = state.A.norm is None
    root = 1.0
    factors: list[Array] = []
    if problem.norm == "fro":
        pending = sample.pop()
        size = float(xa.safe_norm(pending))
    else:
        if is_unknown and not xa.is_finite(sample[0]):
            raise ValueError(sampling.NOT_FINITE)
        q = powers_of(problem, state)
        root = 1.0 / (2 * q + 1)
        basis = sampling.orthonormalized(sample, factors)
        pending = sampling.iterated_sample(problem, state, basis, q, factors=factors)
        if state.norm_A is None:
            lower = _norm_below(problem, state, pending, factors)
            # products of tiny numbers may underflow although the sample does not
            above = None if lower else float(xa.safe_norm(factors[0])) / state.measured_scale
            state = replace(state, norm_A=lower, norm_above=above)
        if is_unknown and not all(map(xa.is_finite, factors)):
            raise ValueError(sampling.NOT_FINITE)
        size = certificate.norm_of_product(factors, state.A.xp, root)
    size = sampling.finite(state.A.agreed(size))
    count, is_sampled = state.sampled_estimates + 1, problem.norm == "fro" and is_unknown
    # δ/(j(j+1)) for the j-th sample: these sum to at most δ, however many samples follow. A
    # sampled norm of A takes half of δ.
    delta = problem.failure_probability / (2.0 if is_sampled else 1.0) / (count * (count + 1))
    factor = spread = 1.0 + 64.0 * epsilon_of(state)
    estimate = size / state.measured_scale
    if not is_identity:
        factor = certificate.safety_factor(samples, delta, is_complex=of_complex)
        spread = certificate.spread_factor(
            samples, problem.failure_probability / 2.0, is_complex=of_complex
        )
        estimate /= math.sqrt(samples) ** root
    elif problem.norm == "fro":  # mix its columns: the basis may take only some
        pending = pending @ problem.source.draw(samples)
    state = replace(state, pending=pending, sampled_estimates=count)
    if is_sampled and state.norm_A is None:
        state = _with_sampled_norm(problem, state, pending, estimate / spread, estimate * factor)
    bound = estimate * factor**root + base_floor(state, factor) + _drift(state)
    if state.rank == 0 and state.norm_A is not None:  # the error of no basis is ‖A‖
        bound = max(bound, state.norm_A)
    if isinstance(state.residual, Explicit):  # the spectral norm is at most ‖E‖_F
        bound += state.residual.drift / state.explicit_scale
        most = state.residual.error().bound / state.explicit_scale
        bound = min(bound, most + base_floor(state))
    return _recorded(state, estimate, min(bound, norm_bound))


def _test_matrix(problem: Problem, state: State) -> tuple[State, Array, bool]:
    """Ω for a sample that certifies the error, and whether Ω is the identity.

    If the residual has no more columns than a sample, the identity measures all of it.
    """
    n = state.A.shape[-1]
    if problem.source.is_free and state.A.domain is None and 0 < n <= width_of_sample(state):
        return state, xa.eye(n, n, like=state.A.empty(0)), True
    state = state if state.is_salted else sampling.with_salted_seed(problem, state)
    return state, problem.source.draw(width_of_sample(state)), False


def checked_near_rounding(problem: Problem, state: State, *, truncates: bool) -> State:
    """The state with a bound that also holds near rounding: the bound is checked and enlarged.

    The residual is computed with reflectors, but the results contain B = QᴴA or Q itself. In long
    sums of numbers of one sign rounding is biased (`adjoint_matmul`), and the two differ: by
    ``(HᴴA)[:k] − B`` if B is computed next, else by ``A − QQᴴA − H [0; (HᴴA)[k:]]``. If the bound
    is so small that this matters, a sample measures the difference. For an explicit residual two
    checks take its place: the departure of Q from orthonormality, and a sample of A that was taken
    before A was overwritten.
    """
    A, residual, look = state.A, state.residual, state.history[-1]
    norm = max(state.norm_A or 0.0, state.norm_above or 0.0)
    needs_none = state.rank == 0 or A.domain is not None or state.checked is residual
    near = NEAR
    if isinstance(residual, Sampled) and xa.is_of_a_gpu(A.empty(0)):  # sums are not by blocks there
        near = max(NEAR, 0.5 * max(A.shape))
    if needs_none or look.bound > near * epsilon_of(state) * norm:
        return state
    if isinstance(residual, Explicit):
        drift = defect(residual.basis.columns()) @ residual.array[: state.rank, :]
        more = max(float(xa.safe_norm(drift)) - residual.drift, lost(state, residual))
        residual = replace(residual, drift=residual.drift + more)
        look = look._replace(bound=look.bound + more / state.explicit_scale)
        history = (*state.history[:-1], look)
        return replace(state, residual=residual, history=history, estimated=residual)
    m, samples = A.shape[0], width_of_sample(state)
    if not isinstance(residual, Sampled) or m <= samples or not norm:
        return state
    count = state.sampled_estimates + 1
    state, Omega, is_identity = _test_matrix(problem, state)
    samples, basis, k = int(Omega.shape[-1]), residual.basis, state.rank
    if samples == 0:
        return state
    problem.work.add(samples)
    Y = A.matmat(Omega)
    HY = basis.coordinates(Y)
    if truncates:
        if residual.known is None:
            problem.work.add(k)
        C = residual.projection()
        state = replace(state, residual=replace(residual, known=C))
        D = HY[:k, :] - xa.adjoint_matmul(C, Omega)
    else:
        Q = basis.columns()
        D = Y - Q @ xa.batched_adjoint_matmul(Q, Y) - basis.embed(HY[k:, :])
    drift = sampling.finite(float(xa.safe_norm(D)) / state.scale)
    if not is_identity:
        delta = problem.failure_probability / 2.0 / (count * (count + 1))
        drift *= certificate.safety_factor(
            samples, delta, is_complex=xa.is_complex(Omega)
        ) / math.sqrt(samples)
    look = look._replace(bound=look.bound + drift)
    return replace(
        state, history=(*state.history[:-1], look), estimated=state.residual,
        checked=state.residual, sampled_estimates=count, drift=state.drift + drift / norm,
    )  # fmt: skip


def _with_sampled_norm(
    problem: Problem, state: State, sample: Array, below: float, above: float
) -> State:
    """Lower and upper bounds on ‖A‖_F, for an operator of which only products are known."""
    found = _norm_below(problem, state, orthonormalize(sample).Q if state.rank == 0 else None)
    if state.rank == 0:
        return replace(state, norm_A=max(below, found), norm_above=above)
    # ‖A‖² = ‖QᴴA‖² + ‖E‖², and the sample is one of the residual E
    above = math.hypot(found * (1.0 + 64.0 * epsilon_of(state)), above)
    return replace(state, norm_A=math.hypot(found, below), norm_above=above)


def _norm_below(
    problem: Problem, state: State, Q: Array | None, factors: list[Array] | None = None
) -> float:
    """A lower bound on ‖A‖: ``‖AᴴY‖`` for orthonormal columns Y near the leading ones.

    Y is Q if there is no basis yet. The second of the triangular `factors` of the power iterations
    is that of AᴴY.
    """
    A, residual = state.A, state.residual
    assert not isinstance(residual, FullSVD)
    if state.rank > 0 and isinstance(residual, Explicit):
        C = xa.leading(residual.projection(), 64)
    elif state.rank == 0 and factors is not None and len(factors) > 1:
        C = factors[1]
    else:
        Y: Any = Q if state.rank == 0 else residual.basis.columns()
        if problem.norm == "spectral":
            Y = xa.leading(Y, 64)
        problem.work.add(int(Y.shape[-1]))
        C = A.rmatmat(Y) if state.rank else residual.rmatmat(Y)
        if A.domain is not None:
            C = A.domain.orthonormalize(C).R
    if A.norm is None and not xa.is_finite(C):
        raise ValueError(sampling.NOT_FINITE)
    less = 1.0 - 32.0 * epsilon_of(state)
    if problem.norm == "fro":  # then A is an operator, of which no product is scaled
        return float(xa.safe_norm(C)) * less
    C = orthonormalize(C).R if C.shape[0] > C.shape[1] else C
    lower = A.agreed(float(certificate.spectral_norm(C, A.xp))) / state.measured_scale * less
    return max(lower, (state.frobenius or 0.0) / math.sqrt(min(A.shape)))


def _flushed(A: Operator) -> float:
    """The part of ‖A‖_F that is lost where subnormal numbers are flushed to zero."""
    smallest = float(A.xp.finfo(A.dtype).smallest_normal)
    return smallest * math.sqrt(math.prod(A.shape)) if xa.flushes(A.empty(0)) else 0.0


def base_floor(state: State, factor: float = 1.0) -> float:
    """Rounding error in the error of a basis; `factor` is the safety factor of its sample."""
    A, norm = state.A, state.norm_A or 0.0
    norm = max(norm, state.norm_above or 0.0) + A.offset
    return certificate.rounding_floor(A.empty(0), A.shape, state.rank, norm, factor)


def lost(state: State, residual: Explicit) -> float:
    """The error of ``HᴴA`` that a sample of A shows, beyond half of the rounding floor."""
    return max(0.0, residual.lost() - 0.5 * base_floor(state) * state.explicit_scale)


def _drift(state: State) -> float:
    return state.drift * max(state.norm_A or 0.0, state.norm_above or 0.0)


def floor_of(state: State) -> float:
    """The rounding floor, with the errors that were measured for this basis."""
    more, residual = _drift(state), state.residual
    if isinstance(residual, Explicit):
        more += residual.drift / state.explicit_scale
    elif isinstance(residual, FullSVD):
        more += residual.rounding / state.explicit_scale
    return base_floor(state) + more
