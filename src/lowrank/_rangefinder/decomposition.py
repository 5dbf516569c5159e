"""The SVD of A, computed instead where growing the basis would cost more."""

import math
from dataclasses import replace

from lowrank._array import eps
from lowrank._array.tuning import tuning
from lowrank._linalg.small_svd import svd_of, tails
from lowrank._rangefinder.blocks import continues, missing_columns, missing_of_power_law, powers_of
from lowrank._rangefinder.estimates import base_floor, floor_of, lost
from lowrank._rangefinder.residuals import Explicit, FullSVD
from lowrank._rangefinder.state import Problem, State, StopRule

# Growth may spend this part of the time of an SVD before it is compared with the SVD.
PATIENCE = 0.05


def svd_is_cheaper(
    problem: Problem, state: State, rule: StopRule, goal: float, *, truncates: bool
) -> bool:
    """Whether the SVD of A takes less time than growing the basis from here on.

    Yes, if even the least possible number of missing columns takes longer than the SVD. Also, if
    growth has already spent a part of that time, and would take longer at the rate of the last
    block. So no tolerance costs much more than the SVD.
    """
    residual = state.residual
    if not isinstance(residual, Explicit):
        return False
    (m, n), k = state.A.shape, state.rank
    q = 0 if truncates and continues(problem, state) else powers_of(problem, state)
    kind = tuning(residual.array)
    cost = kind.svd_cost[0 if eps(residual.array) > 1e-10 else 1]
    short, long = min(m, n), max(m, n)
    whole = cost * short**3 + (6.0 * long * short**2 if long > 2 * short else 0.0)

    def grown(start: int, columns: float) -> float:
        """Flops to grow from `start` by `columns`: 3 + 2q products with the residual of A, which
        shrinks; and a QR, a small SVD and a product for the truncation.
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
    change = _change_of_rate(state)
    if change < 0.8:  # a power law mostly predicts too many columns, a constant rate too few
        by_power = max(expected, missing_of_power_law(state, target))
        expected = expected ** (1 / 3) * by_power ** (2 / 3)
    elif change > 1.25 and least > 0.0:  # as at the end of a plateau
        expected = math.sqrt(expected) * math.sqrt(least)
    spent = 2.0 * m * n * (problem.work.products + k) * (1.0 - k / (2 * m))
    return spent > PATIENCE * whole and grown(k, expected) > whole


def _change_of_rate(state: State) -> float:
    """How fast the error fell per column in the last block, over how fast in the one before."""
    if len(state.history) < 3:
        return 1.0
    first, second, last = state.history[-3:]
    falls = 0.0 < last.estimate < second.estimate < first.estimate
    if not (first.rank < second.rank < last.rank and falls):
        return 1.0
    before = math.log(first.estimate / second.estimate) / (second.rank - first.rank)
    return math.log(second.estimate / last.estimate) / (last.rank - second.rank) / before


def decomposed(problem: Problem, state: State) -> State:
    """The state with the SVD of A; of ``HᴴA`` if A was overwritten."""
    residual = state.residual
    assert isinstance(residual, Explicit)
    problem.work.add(0)
    if state.is_overwritten:
        U, S, Vh, rounding = svd_of(residual.array)
        U, rounding = residual.basis.rotate(U), rounding + lost(state, residual)
    else:
        array = state.A.explicit(False, False)
        array *= state.explicit_scale
        U, S, Vh, rounding = svd_of(array, hermitian=problem.hermitian)
    # no fewer columns than the basis had
    whole = FullSVD(U, S, Vh, tails(S, problem.norm), rounding, state.rank)
    return replace(state, residual=whole, pending=None)


def cut(state: State, goal: float, limit: int) -> State:
    """The state with the smallest rank whose error meets the goal, as far as rounding allows."""
    whole = state.residual
    assert isinstance(whole, FullSVD)
    noise = whole.rounding / state.explicit_scale
    least = noise + base_floor(replace(state, residual=replace(whole, rank=0)))
    noise += base_floor(replace(state, residual=replace(whole, rank=limit)))
    target = max(goal - noise, 0.9 * least) * (1.0 - 64.0 * eps(whole.S)) * state.explicit_scale
    xp = state.A.xp
    rank = int(xp.sum(xp.astype(whole.tails > target, xp.int32)))
    if state.estimated is whole:  # its rank was not enough
        rank = max(rank, whole.rank + 1)
    rank = min(max(rank, whole.rank), limit)
    return state if rank == whole.rank else replace(state, residual=replace(whole, rank=rank))
