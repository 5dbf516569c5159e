"""Time: calls that take turns, within a budget, and the rows that follow from them.

Only the standard library is imported here.
"""

import math
import time
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.common.results import Results

# Repeats of a call: as many as the first, but no more than LEAST once they took ENOUGH seconds
# together, and no more at all once they took FAR_TOO_MUCH.
REPEATS, LEAST, ENOUGH, FAR_TOO_MUCH = 7, 3, 1.0, 4.0


class Budget:
    """A time to stop at."""

    def __init__(self, seconds: float) -> None:
        self._start = time.perf_counter()
        self.seconds = seconds

    def spent(self) -> float:
        return time.perf_counter() - self._start

    def left(self) -> float:
        return self.seconds - self.spent()

    def part(self, *, keeping: float = 0.0, at_most: float = math.inf) -> "Budget":
        """A budget of what is left, less `keeping` for later."""
        return Budget(min(self.left() - keeping, at_most))


@dataclass
class Timing:
    """Times of one call, what its last run returned, and why it failed if it did."""

    seconds: list[float] = field(default_factory=list)
    result: Any = None
    failure: str | None = None

    def row(self) -> dict[str, Any]:
        """The columns of a row that follow from the times."""
        if not self.seconds:
            return {"skipped": self.failure or "not run"}
        return {
            "seconds": median(self.seconds),
            "fastest": min(self.seconds),
            "repeats": len(self.seconds),
            "skipped": self.failure,
        }


def interleaved(
    calls: Mapping[str, Callable[[int], Any]],
    synchronize: Callable[[], Any] = lambda: None,
    *,
    budget: Budget | None = None,
    repeats: int = REPEATS,
    once: frozenset[str] = frozenset(),
) -> dict[str, Timing]:
    """Time the calls in turn, so that what disturbs the machine disturbs all of them alike.

    The argument of a call is the number of its repeat, to be used as a seed. The first run of each
    warms up and does not count, except for the calls named in `once`, which run a single time. The
    clock is `time.perf_counter`, read after `synchronize()` before and after the call: what the
    user waits for, the work of the host included. A call that fails is not tried again; nor is one
    that would no longer fit into the budget.
    """
    timings = {name: Timing() for name in calls}
    expected = dict.fromkeys(calls, 0.0)
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            timing = timings[name]
            if timing.failure or _has_enough(timing.seconds) or (name in once and repeat):
                continue
            if budget is not None and budget.left() < expected[name]:
                if not timing.seconds:
                    timing.failure = "no time left"
                continue
            try:
                timing.result = None  # frees its memory before the call needs as much again
                duration, timing.result = timed(
                    lambda call=call, seed=repeat: call(seed), synchronize
                )
            except Exception as error:
                timing.failure = told(error)
                continue
            expected[name] = duration
            if repeat or name in once:
                timing.seconds.append(duration)
    return timings


def _has_enough(seconds: list[float]) -> bool:
    total = sum(seconds)
    return (len(seconds) >= LEAST and total > ENOUGH) or total > FAR_TOO_MUCH


def timed(call: Callable[[], Any], synchronize: Callable[[], Any]) -> tuple[float, Any]:
    synchronize()
    start = time.perf_counter()
    result = call()
    synchronize()
    return time.perf_counter() - start, result


def told(error: BaseException) -> str:
    """The kind of an error and the beginning of its message, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


@dataclass(frozen=True)
class Call:
    """A method to measure; the argument of `run` is a seed.

    Rows with the same `task` can be compared. `base` is the name of the call that `ratio` is to.
    """

    library: str
    method: str
    task: str | None
    run: Callable[[int], Any]
    base: str | None = None
    products: float = 1.0  # of k columns with the matrix, where the result does not tell
    once: bool = False  # a few seconds each: runs a single time
    foreign: bool = False  # works in the threads of another BLAS than the others

    @property
    def name(self) -> str:
        return f"{self.library} {self.method}"


Judge = Callable[[Call, Any, Mapping[str, float]], dict[str, Any]]


def measure(
    results: Results,
    group: Mapping[str, Any],
    calls: list[Call],
    judge: Judge,
    synchronize: Callable[[], Any] = lambda: None,
    *,
    budget: Budget | None = None,
    repeats: int = REPEATS,
    rest: Callable[[int], Any] | None = None,
) -> None:
    """Time the calls of one group in turn, and record a row for each.

    The judge adds columns, from a result and the medians of all calls; where it fails, the row has
    a note, and no more. A foreign call is followed by a `rest`.
    """
    turns: dict[str, Callable[[int], Any]] = {}
    for call in calls:
        turns[call.name] = call.run
        if call.foreign and rest is not None:
            turns[f"rest after {call.name}"] = rest
    once = frozenset(call.name for call in calls if call.once)
    timings = interleaved(turns, synchronize, budget=budget, repeats=repeats, once=once)
    medians = {name: median(timing.seconds) for name, timing in timings.items() if timing.seconds}
    for call in calls:
        timing = timings[call.name]
        columns = timing.row()
        if timing.seconds:
            if call.base in medians:
                columns["ratio"] = columns["seconds"] / medians[call.base]
            try:
                columns |= judge(call, timing.result, medians)
            except Exception as error:
                columns["note"] = told(error)
        timing.result = None
        named = {"library": call.library, "method": call.method, "task": call.task}
        results.add(**{**group, **named, **columns})


def grown_and_at_once(
    method: Callable[..., Any], A: Any, rtol: float, rank: int = 1
) -> tuple[Callable[[int], Any], Callable[[int], Any]]:
    """Calls to a tolerance, and of the rank that the last of them found, at first `rank`."""
    ranks = [rank]

    def grown(seed: int) -> Any:
        found = method(A, rtol=rtol, rng=seed)
        ranks.append(found.rank)
        return found

    def at_once(seed: int) -> Any:
        return method(A, ranks[-1], rng=seed)

    return grown, at_once


def in_turn(
    calls: Mapping[str, Callable[[int], Any]],
    repeats: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    once: Container[str] = (),
    look: Callable[[str, Any], Any] = lambda *_: None,
) -> dict[str, list[float]]:
    """Seconds of calls that take turns, after a first one of each that does not count.

    The argument of a call is the number of its repeat; those in `once` have one. `look` gets what
    each has returned.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            if repeat > 1 and name in once:
                continue
            start = clock()
            found = call(repeat)
            duration = clock() - start
            if repeat:
                seconds[name].append(duration)
                look(name, found)
    return seconds
