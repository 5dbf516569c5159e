"""A basis of a fixed rank or for a tolerance, from which results and factorizations are made."""

import math
import warnings
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from lowrank._array import Array, matrix_norm_by_rows, norms
from lowrank._operators import as_operator, checks
from lowrank._operators.adjoints import check_adjoint
from lowrank._operators.sketch import TestMatrix
from lowrank._rangefinder import growth
from lowrank._rangefinder.estimates import floor_of
from lowrank._rangefinder.options import DEFAULTS
from lowrank._rangefinder.residuals import Orthonormal
from lowrank._rangefinder.sampling import SampledPanel, measured, sampled_panel
from lowrank._rangefinder.state import Problem, State, StopRule, Work, outcome_of, start
from lowrank.results import ConvergenceWarning, Outcome, Status, fields_of

Side = Literal["left", "right"]
# Columns that the basis may have beyond the cap, before it is truncated.
MARGIN = 64


def problem_of(
    A: Any, *, side: Side, powers: int | None = None, hermitian: bool = False, **given: Any
) -> tuple[Problem, State]:
    """The checked options, and the state without a basis.

    `powers`: the power iterations if none are given; None to a tolerance, where each block chooses.
    """
    options = DEFAULTS | given
    if side not in ("left", "right"):
        raise ValueError(f"`side` must be 'left' (range) or 'right' (corange), got {side!r}.")
    norm, krylov = checks.as_norm(options["norm"]), bool(options["krylov"])
    delta = checks.as_failure_probability(options["failure_probability"])
    power_iterations, block_size = options["power_iterations"], options["block_size"]
    if power_iterations is None and (krylov or powers is not None):
        power_iterations = powers or int(krylov)
    if power_iterations is not None:
        power_iterations = checks.as_count(power_iterations, "power_iterations")
        if krylov and power_iterations == 0:
            raise ValueError("`krylov` needs `power_iterations` of at least 1, got 0.")
    A = as_operator(A)
    if options["check"]:
        check_adjoint(A, options["rng"])
    A = A if side == "left" else A.adjoint()
    if block_size is not None:
        block_size = checks.as_block_size(block_size, A.empty(0))
    problem = Problem(
        norm=norm, failure_probability=delta, power_iterations=power_iterations, krylov=krylov,
        block_size=block_size, certificate=checks.as_certificate(options["certificate"], A),
        overwrite_a=bool(options["overwrite_a"]), hermitian=hermitian,
        check_finite=bool(options["check_finite"]), callback=options["callback"],
        source=TestMatrix(A, options["test_matrix"], options["rng"]), work=Work(),
    )  # fmt: skip
    return problem, start(A)


def reported(outcome: Outcome) -> dict[str, Any]:
    """The attributes of a result by name; warns, at the user's line, of a tolerance not met."""
    if outcome.converged is False:
        bound, error, status = outcome.error_bound, outcome.error, outcome.status
        reached = "no estimate yet" if bound is None else f"bound {bound:.3g}, estimate {error:.3g}"
        message = (
            f"the tolerance {outcome.tolerance:.3g} (absolute) was not certified: {reached} at "
            f"rank {outcome.rank}. {status.name}: {status.value}"
        )
        # stack level 4: the caller of the public function, outside of its decorator
        warnings.warn(message, ConvergenceWarning, stacklevel=4)
    return fields_of(outcome)


class Found(NamedTuple):
    """A finished basis, from which factorizations are made."""

    problem: Problem
    state: State
    basis: Any
    outcome: Outcome
    floor: float  # the part of the error bound that stands for rounding
    fixed: bool  # whether the rank is fixed, without a tolerance
    unchecked: SampledPanel | None = None  # the panel, if not checked yet to be finite
    captured: float | None = None  # ‖QᴴA‖_F, if it was read

    @property
    def norm_is_exact(self) -> bool:
        """Whether ‖A‖ in the chosen norm is known, not only a lower bound."""
        return self.problem.norm == "fro" and self.state.A.norm is not None

    def norm_along(self, X: Array) -> float:
        """``‖X‖_F`` for the product ``X = AᴴQ``, whose rows may be sharded."""
        if self.captured is not None:
            return self.captured
        domain = self.state.A.domain
        return matrix_norm_by_rows(X if domain is None else domain.orthonormalize(X).R)


def find(
    A: Array,
    rank: int | None,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    side: Side = "left",
    share: float | None = None,
    powers: int = 0,
    oversampling: int = 0,
    projects: bool = False,
    **options: Any,
) -> Found:
    """A basis of a fixed rank, or for a tolerance.

    At a fixed rank it has `oversampling` more columns, after `powers` power iterations by default.
    A caller that truncates passes `share`, its factor on the goals of growth: with a tolerance the
    basis may then have twice as many columns as the cap, at least MARGIN more; at a fixed rank it
    is the whole Krylov space. If the caller `projects` A next, a device is asked only then whether
    the basis is finite.
    """
    extra, fixed = checks.as_count(oversampling, "oversampling"), rtol is None and atol is None
    rank = None if rank is None else checks.as_count(rank, "rank")
    if not fixed:
        rank = None if rank is None else rank if share is None else max(rank + MARGIN, 2 * rank)
        problem, state = problem_of(A, side=side, **options)
        rule = StopRule.parse(state.A, rtol=rtol, atol=atol, rank=rank)
        return _grown(problem, state, rule, share)
    if rank is None:
        raise ValueError("no stopping criterion: give `rank`, `rtol` or `atol`.")
    problem, state = problem_of(A, side=side, powers=powers, **options)
    widened = (problem.power_iterations or 0) + 1 if problem.krylov and share is not None else 1
    columns = min((rank + extra) * widened, state.full)
    status = Status.FULL_RANK if rank > state.full else Status.RANK_REACHED
    Q, unchecked = state.residual.basis.empty, None
    if columns:
        panel = sampled_panel(problem, state, columns)
        unchecked = panel if projects and panel.is_costly_to_check else None
        state, Q = (panel.state, panel.Q) if unchecked else panel.checked()
    state = replace(state, status=status)
    outcome = replace(outcome_of(problem, state), rank=min(rank, columns))
    return Found(problem, state, Orthonormal(Q), outcome, 0.0, fixed, unchecked)


def _grown(problem: Problem, state: State, rule: StopRule, share: float | None) -> Found:
    state = growth.reach(problem, state, rule, share=share)
    outcome = outcome_of(problem, state)
    return Found(problem, state, state.residual.basis, outcome, floor_of(state), fixed=False)


def refined(found: Found, share: float) -> Found:
    """The basis after growth to a smaller part of the tolerance."""
    assert found.state.rule is not None
    return _grown(found.problem, found.state, found.state.rule, share)


def projection(found: Found, *, release: bool = False) -> tuple[Found, Array, float]:
    """``C = s AᴴQ``, n×k, and the scale s; also sharpens a sampled norm of A.

    With `release`, if the basis will not grow any more, the memory of the residual is freed.
    """
    problem, state = found.problem, found.state
    if found.fixed:
        found, C = _image(found)
        work, state = problem.work, found.state
        outcome = replace(found.outcome, passes=work.passes, products=work.products)
    else:
        state, C = growth.projected(problem, state)
        outcome = outcome_of(problem, state)
    state = growth.resumable(state) if release else state
    return found._replace(state=state, outcome=outcome), C, found.state.measured_scale


def _image(found: Found) -> tuple[Found, Array]:
    """``s AᴴQ``, and the basis, checked to be finite if it was not yet.

    The check is then one read, together with the norms of A and of the product.
    """
    problem, state, unchecked = found.problem, found.state, found.unchecked
    problem.work.add(found.basis.rank)
    C, A = state.A.rmatmat(found.basis.Q), state.A.array
    if unchecked is None:
        return found, C
    known = [A] if A is not None and (A.ndim, A.dtype, problem.norm) == (2, C.dtype, "fro") else []
    captured, *numbers = norms(C, *known, also=unchecked.sums)
    if not all(map(math.isfinite, [captured, *numbers[len(known) :]])):
        state, Q = unchecked.retried_with_scaling()
        return _image(found._replace(state=state, basis=Orthonormal(Q), unchecked=None))
    if known:
        state = replace(state, frobenius=measured(problem, state, numbers[0]).frobenius)
    return found._replace(state=state, unchecked=None, captured=captured), C
