"""Where growing on would cost more than the SVD of A: that is computed instead."""

import math
from dataclasses import replace

from lowrank._array import eps
from lowrank._rangefinder.blocks import missing_columns, missing_of_power_law, powers_of
from lowrank._rangefinder.estimates import base_floor, floor_of, lost
from lowrank._rangefinder.residuals import Explicit, FullSVD
from lowrank._rangefinder.state import Problem, State, StopRule
from lowrank._small_svd import svd_of, tails
from lowrank._tuning import tuning

# The part of the time of an SVD that growing may take before it has to look promising.
PATIENCE = 0.03


def svd_is_cheaper(
    problem: Problem, state: State, rule: StopRule, goal: float, *, truncates: bool
) -> bool:
    """Whether to decompose A itself, by the time that both ways take from here on.

    That is so where growing by the columns that are missing at least would take longer than the
    SVD; and where the growth so far took a part of that time already, and would take longer if it
    went on as in the last block. So no tolerance costs much more than the SVD.
    """
    residual = state.residual
    if not isinstance(residual, Explicit):
        return False
    (m, n), k = state.A.shape, state.rank
    q = powers_of(problem, state)
    kind = tuning(residual.array)
    cost = kind.svd_cost[0 if eps(residual.array) > 1e-10 else 1]
    short, long = min(m, n), max(m, n)
    whole = cost * short**3 + (6.0 * long * short**2 if long > 2 * short else 0.0)

    def grown(start: int, columns: float) -> float:
        """From `start` to so many columns more: 3 + 2q products with what is then left of A, and
        to truncate them a QR, a small SVD and a product.
        """
        K = min(start + max(columns, 1.0), rule.limit)
        flops = (3 + 2 * q) * 2.0 * m * n * (K - start) * (1.0 - (K + start) / (2 * m))
        flops += kind.block_cost * math.ceil((K - start) / kind.width) + 2.0 * m * K**2
        return flops + truncates * (cost * K**3 + 4.0 * n * K**2 + 2.0 * m * K**2)

    if k == 0:
        return grown(0, kind.width) > whole
    target = max(goal, floor_of(state))
    least, expected = missing_columns(problem, state, target)
    if grown(k, least) > whole:
        return True
    if _slows_down(state):  # in between: powers of the rank fall too slowly, and rates too fast
        by_power = max(expected, missing_of_power_law(state, target))
        expected = math.sqrt(expected) * math.sqrt(by_power)
    spent = (3 + 2 * q) * 2.0 * m * n * k * (1.0 - k / (2 * m))
    return spent > PATIENCE * whole and grown(k, expected) > whole


def _slows_down(state: State) -> bool:
    """Whether a column of the last block made the error fall by less than one before it did."""
    if len(state.history) < 3:
        return False
    first, second, last = state.history[-3:]
    if not (first.rank < second.rank < last.rank and 0.0 < last.estimate < second.estimate):
        return False
    before = math.log(first.estimate / second.estimate) / (second.rank - first.rank)
    now = math.log(second.estimate / last.estimate) / (last.rank - second.rank)
    return now < 0.8 * before


def decomposed(problem: Problem, state: State) -> State:
    """The state with the SVD of A, of the untouched matrix where there still is one."""
    residual = state.residual
    assert isinstance(residual, Explicit)
    assert state.A.explicit is not None
    problem.work.add(0)
    if state.is_overwritten:
        U, S, Vh, rounding = svd_of(residual.array)
        U, rounding = residual.basis.rotate(U), rounding + lost(state, residual)
    else:
        array = state.A.explicit(False, False)
        array *= state.explicit_scale
        U, S, Vh, rounding = svd_of(array, hermitian=problem.hermitian)
    # not fewer columns than the basis had
    whole = FullSVD(U, S, Vh, tails(S, problem.norm), rounding, state.rank)
    return replace(state, residual=whole, pending=None)


def cut(state: State, goal: float, limit: int) -> State:
    """The smallest rank that keeps the goal, or what rounding leaves of it."""
    whole = state.residual
    assert isinstance(whole, FullSVD)
    noise = whole.rounding / state.explicit_scale
    least = noise + base_floor(replace(state, residual=replace(whole, rank=0)))
    noise += base_floor(replace(state, residual=replace(whole, rank=limit)))
    target = max(goal - noise, 0.9 * least) * (1.0 - 64.0 * eps(whole.S)) * state.explicit_scale
    xp = state.A.xp
    rank = int(xp.sum(xp.astype(whole.tails > target, xp.int32)))
    if state.estimated is whole:  # whose rank did not do
        rank = max(rank, whole.rank + 1)
    rank = min(max(rank, whole.rank), limit)
    return state if rank == whole.rank else replace(state, residual=replace(whole, rank=rank))
