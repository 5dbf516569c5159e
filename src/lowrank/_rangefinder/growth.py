"""The adaptive range finder: sample the residual, factor the sample, apply it, measure the error.

This is the blocked Householder range finder of C. Penke (Efficient computation of low-rank
representations to reduce memory requirements in deep learning, 2024,
doi:10.34734/FZJ-2024-06883) and of C. Penke and A. Herten (A GPU-accelerated blocked adaptive
randomized range finder based on an implicit Householder QR decomposition, manuscript, 2026). With
``B = A`` at first and k = 0, until the error is small enough (docs/explanation/algorithm.md has the
same numbers):

1. sample the residual, ``Y = B[k:] Ω`` with a Gaussian Ω, or, if a truncation follows, with an Ω
   that spans the rows which the last block finished: a Krylov space (added here);
2. do power iterations on a Gaussian sample (added here), which need no deflation;
3. factor the sample, ``Y = (I − V T Vᴴ) [R; 0]``;
4. apply the reflectors to the residual, ``B[k:] ← (I − V Tᴴ Vᴴ) B[k:]``, and increase k by the
   number of columns: now ``B = HᴴA``, and its first k rows are finished;
5. measure ``‖B[k:]‖``, the error of the basis;
6. stop, or compute the SVD of A if that is cheaper, or go to step 1.

If A is not an array in memory, products with A replace B (see `residuals`).
"""

from collections.abc import Callable
from dataclasses import replace

from lowrank._array import Array, is_torch_namespace, loaded, safe_norm
from lowrank._array.arithmetic import as_the_caller_set
from lowrank._linalg.small_svd import sample_of
from lowrank._rangefinder.blocks import goal_of, panel
from lowrank._rangefinder.decomposition import cut, decomposed, svd_is_cheaper
from lowrank._rangefinder.estimates import NEAR, checked_near_rounding, estimated, floor_of
from lowrank._rangefinder.residuals import ByEnergies, Explicit, FullSVD, Sampled
from lowrank._rangefinder.sampling import finite, measured, sampled_panel
from lowrank._rangefinder.state import Problem, State, StopRule, epsilon_of
from lowrank.results import Status

Keep = Callable[[State], object]


def reach(
    problem: Problem,
    state: State,
    rule: StopRule,
    *,
    share: float | None = None,
    keep: Keep = lambda _: None,
) -> State:
    """Grow until the bound is at most the tolerance of the rule.

    A caller that truncates passes `share`, a factor on the goals of `GROWTH`: growth ends at that
    part of the tolerance, and the truncation spends the rest. If the goal is out of reach, meeting
    the tolerance itself still counts as converged. `keep` receives states from which the work can
    be resumed after an interruption. Steps 1 to 3 are in `panel` (module `blocks`), step 4 in
    `_appended`, step 5 in `estimated` (module `estimates`).
    """
    state = _prepared(problem, replace(state, rule=rule), keep)
    while True:
        is_stopped = False
        goal = goal_of(problem, state, share) * rule.tolerance(state.norm_A)
        if state.estimated is not state.residual:  # its error is not measured yet
            after = estimated(problem, state, goal)
            if after is None:
                break
            state = after
            keep(state)
            is_stopped = _is_stopped(problem, state)
            goal = goal_of(problem, state, share) * rule.tolerance(state.norm_A)
        floor, is_falling = floor_of(state), _is_falling(state)
        status = rule.decide(state.history[-1], goal, floor, is_falling=is_falling)
        # min(m, n) columns that still leave an error do not span the range of A; its SVD does.
        is_short = status is Status.FULL_RANK and isinstance(state.residual, Explicit)
        if status is not None and not is_short:
            state = checked_near_rounding(problem, state, truncates=share is not None)
            if status is Status.CONVERGED and state.history[-1].bound > goal:
                # more columns help if the bound is well above what rounding has left
                can_fall = state.history[-1].bound > 2.0 * floor_of(state)
                if isinstance(state.residual, Sampled) and can_fall and not is_stopped:
                    continue
                status = Status.PRECISION_FLOOR
            return replace(state, status=status)
        if is_stopped:
            break
        if isinstance(state.residual, FullSVD):
            state = cut(state, goal, rule.limit)
        elif is_short or svd_is_cheaper(problem, state, rule, goal, truncates=share is not None):
            state = cut(decomposed(problem, state), goal, rule.limit)
        else:
            state, Q = panel(problem, state, rule, goal, truncates=share is not None)
            if Q is None:
                break
            keep(resumable(state))
            state = _appended(problem, state, Q)
    return replace(state, status=Status.STOPPED)


def _is_falling(state: State) -> bool:
    """Whether the last block lowered a known error by at least a fifth."""
    if not isinstance(state.residual, Explicit) or len(state.history) < 2:
        return False
    return state.history[-1].estimate < 0.8 * state.history[-2].estimate


def _prepared(problem: Problem, state: State, keep: Keep) -> State:
    """The state with the norm of A, if available, and the residual for the certificate."""
    _refuse_overwritten(state)
    if state.A.norm is not None and state.frobenius is None:
        state = measured(problem, state)
    if 0 in state.A.shape:
        return replace(state, norm_A=0.0, norm_above=0.0)
    if not isinstance(state.residual, Sampled) or state.residual.known is not None:
        return state
    if problem.certificate == "exact":
        if problem.overwrite_a:
            keep(replace(state, is_overwritten=True))
        is_torch = is_torch_namespace(state.A.xp)
        more = [loaded("torch").OutOfMemoryError] if is_torch else []  # CuPy's is a MemoryError
        try:
            array = state.A.explicit(False, problem.overwrite_a)
        except (MemoryError, *more):
            array = None
        if array is not None:
            return _with_explicit_residual(problem, state, array)
    if problem.norm == "fro" and problem.certificate != "sampled" and state.frobenius:
        energies = ByEnergies(state.A, state.residual.basis, norm_A=state.frobenius * state.scale)
        if state.rank:
            problem.work.add(state.rank)
            energies = energies.completed()
        return replace(state, residual=energies)
    return state


def _refuse_overwritten(state: State) -> None:
    if state.is_overwritten and isinstance(state.residual, Sampled):
        raise RuntimeError(
            "`A` was overwritten with HᴴA, as `overwrite_a` allows, and the work was interrupted; "
            "make a new RangeFinder with the original matrix."
        )


def _with_explicit_residual(problem: Problem, state: State, array: Array) -> State:
    assert state.frobenius is not None
    basis = state.residual.basis
    array *= state.explicit_scale
    if state.rank:
        problem.work.add(state.rank)
    assert state.rule is not None
    near = 2.0 * NEAR * epsilon_of(state) * state.frobenius
    sample = sample_of(array) if state.rule.tolerance(state.frobenius) <= near else ()
    residual = Explicit.of(array, basis, state.frobenius * state.explicit_scale)
    residual = replace(residual, sample=sample)
    return replace(state, residual=residual, drift=0.0, is_overwritten=problem.overwrite_a)


def resumable(state: State) -> State:
    """The state to resume from after an interruption, which may leave the residual half written."""
    if not isinstance(state.residual, Explicit):
        return state
    sampled, drift = Sampled(state.A, state.residual.basis), state.residual.drift
    drift = drift / state.explicit_scale / (state.frobenius or 1.0)
    return replace(state, residual=sampled, drift=drift, estimated=None)


def _appended(problem: Problem, state: State, Q: Array) -> State:
    residual = state.residual
    assert not isinstance(residual, FullSVD)
    if not isinstance(residual, Sampled):  # the product that makes the new rows of B
        problem.work.add(int(Q.shape[-1]))
    after = residual.append(Q)
    if isinstance(after, Explicit):
        finite(state.A.agreed(after.norm))
    else:
        # `captured` only shows whether the product is finite
        captured = after.captured if isinstance(after, ByEnergies) else 0.0
        left = state.history[-1].bound / state.norm_A if state.history and state.norm_A else 1.0
        drift = state.A.agreed(after.basis.departure * min(1.0, left) + 0.0 * captured)
        state = replace(state, drift=state.drift + finite(drift))
    return replace(state, residual=after, pending=None)


def _is_stopped(problem: Problem, state: State) -> bool:
    """Call the callback; whether it stopped the work. Process 0 decides for all processes."""
    is_stopped = False
    is_free = state.rank == 0 and state.sampled_estimates == 0
    try:
        if problem.callback is not None and not is_free:
            with as_the_caller_set():
                problem.callback(state.history[-1])
    except StopIteration:
        is_stopped = True
    return bool(state.A.agreed(float(is_stopped)))


# -- a fixed number of columns, and the factor B ---------------------------------------------------


def extend(problem: Problem, state: State, columns: int, keep: Keep) -> State:
    """The state with `columns` more columns, in one block; fewer if min(m, n) is reached."""
    missing = state.full - state.rank
    status = Status.FULL_RANK if columns > missing else Status.RANK_REACHED
    columns = min(columns, missing)
    if columns > 0 and isinstance(state.residual, FullSVD):
        state = replace(state, residual=replace(state.residual, rank=state.rank + columns))
    elif columns > 0:
        _refuse_overwritten(state)
        state, Q = sampled_panel(problem, state, columns).checked()
        keep(resumable(state))
        state = _appended(problem, state, Q)
    return replace(state, status=status)


def projected(problem: Problem, state: State) -> tuple[State, Array]:
    """``C = s AᴴQ``, n×k, with s the `measured_scale` of the state; at most one pass.

    ‖C‖/s is a lower bound on ‖A‖_F, sharper than that of a sample.
    """
    residual = state.residual
    if isinstance(residual, Explicit | FullSVD):
        C = residual.projection()
        return state, C if state.is_overwritten else state.A.xp.asarray(C, copy=True)
    known = residual.known
    missing = state.rank - (0 if known is None else int(known.shape[-1]))
    if missing or known is None:
        problem.work.add(missing)
    C = residual.projection()
    if state.rule is not None and problem.norm == "fro" and state.A.norm is None:
        lower = float(safe_norm(C)) * (1.0 - 32.0 * epsilon_of(state))
        state = replace(state, norm_A=max(state.norm_A or 0.0, lower))
    return state, C
