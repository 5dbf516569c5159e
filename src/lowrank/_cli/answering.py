"""The results for the command line, as a table and as JSON."""

import math
import time
import warnings
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np

import lowrank
from lowrank._cli.arguments import Options
from lowrank._cli.reading import Matrix
from lowrank._cli.telling import Progress, printable, reason, refuse, tell
from lowrank._linalg.certificate import residual_norm
from lowrank.results import Look, Status, size_of

NORMS = {"fro": "Frobenius norm", "spectral": "spectral norm at least"}
TITLES = "tolerance    rank  error bound  estimate           memory        time"

# An SVDResult with error and norm, and what JSON says of it.
Answer = tuple[Any, dict[str, Any]]


def answers(matrix: Matrix, options: Options, progress: Progress, about: str) -> list[Answer]:
    """One answer for each tolerance; error messages begin with `about`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # missed tolerances get a line of their own
            return [_answer(matrix, rtol, options, progress) for rtol in options.rtols]
    # NaN or Inf, which only products reveal
    except (MemoryError, RuntimeError, ValueError) as error:
        said = reason(error).replace("`A`", "the matrix")
        if "NaN" in said and isinstance(matrix.array, np.ndarray):
            place = np.unravel_index(np.argmin(np.isfinite(matrix.array)), matrix.array.shape)
            said += "; the first in row {}, column {}".format(*(k + 1 for k in place))
        refuse(f"{about}: {said}")


def _answer(matrix: Matrix, rtol: float | None, options: Options, progress: Progress) -> Answer:
    A, norm, seed, atol = matrix.array, options.norm, options.seed, options.atol
    svd: Any = partial(lowrank.svd, A, norm=norm, center=options.center, rng=seed)

    def with_error(found: Any) -> Any:
        """Measured by a fresh sample, if it has none; and ‖A‖² = ‖A − A_r‖² + ‖A_r‖²."""
        if found.error_bound is not None:
            return found
        fresh, S = residual_norm(A, found, norm=norm, rng=seed), map(float, found.S)
        size = next(S) if norm == "spectral" else math.hypot(fresh.value, *S)
        sampled = {"error": fresh.value, "error_bound": fresh.upper_bound, "norm_A": size}
        return replace(found, certificate="sampled", **sampled)

    @cache
    def norm_A() -> float:
        """The norm of A, which a Look does not contain."""
        return with_error(svd(1, power_iterations=0)).norm_A or 1.0

    def state(look: Look) -> str:
        error, goal = look.bound / norm_A(), max(rtol or 0.0, (atol or 0.0) / norm_A())
        return f"rank {look.rank}, error at most {error:.2e}, goal {goal:.2e}"

    given = {"rtol": rtol, "atol": atol, "power_iterations": options.power_iterations}
    start = time.perf_counter()
    found = svd(options.rank, callback=lambda look: progress.show(partial(state, look)), **given)
    seconds = time.perf_counter() - start
    found = with_error(found)
    numbers = found.rank * (sum(A.shape) + 1) + (A.shape[1] if options.center else 0)
    names = ("converged", "rank", "passes", "error", "error_bound", "norm_A")
    about = {name: getattr(found, name) for name in names}
    tolerance = None if found.tolerance == math.inf else found.tolerance  # for JSON
    about |= {"rtol": rtol, "tolerance": tolerance, "status": found.status.name}
    return found, about | {"bytes": numbers * matrix.itemsize, "seconds": seconds}


def relative(result: dict[str, Any], key: str) -> float:
    """An error or a tolerance, relative to the norm of the matrix."""
    return result[key] / result["norm_A"] if result["norm_A"] > 0 else 0.0


def _memory(nbytes: int, whole: int) -> str:
    return f"{size_of(nbytes)} {nbytes / whole:>5.0%}"


def tell_matrix(entry: dict[str, Any], options: Options, *, several: bool) -> None:
    """The lines of a matrix in the table; those of several matrices have one title."""
    name, shape = printable(entry["name"] or ""), "×".join(map(str, entry["shape"]))
    tensor = f"   {name} {shape}" if several else ""
    if not several:
        head = f"{printable(str(options.file))} {name}".rstrip()
        norm = f"{NORMS[options.norm]} {entry['results'][0]['norm_A']:.4g}"
        tell(f"{head}: {shape}, {entry['dtype']}, {size_of(entry['bytes'])}; {norm}\n\n{TITLES}")
    for result in entry["results"]:
        goal = "-" if result["tolerance"] is None else f"{relative(result, 'tolerance'):.3g}"
        rank = f"{result['rank']}{'*' if result['converged'] is False else ''}"
        bound, error = relative(result, "error_bound"), relative(result, "error")
        memory = _memory(result["bytes"], entry["bytes"])
        row = f"{goal:>9} {rank:>7} {bound:12.2e} {error:9.2e} {memory:>16}"
        tell(f"{row} {result['seconds']:9.2f} s{tensor}")
    if not several and max(result["bytes"] for result in entry["results"]) > entry["bytes"]:
        tell("\nFactors of more than 100% take more memory than the matrix: keep the matrix.")


def tell_totals(entries: list[dict[str, Any]], options: Options) -> None:
    """Of several matrices: the smaller of matrix and factors, for each tolerance."""
    whole = sum(entry["bytes"] for entry in entries)
    for k, rtol in enumerate(options.rtols):
        least = sum(min(entry["results"][k]["bytes"], entry["bytes"]) for entry in entries)
        limit, memory = "-" if rtol is None else f"{rtol:g}", _memory(least, whole)
        rest = "total, counting a tensor as it is if its factors take more"
        tell(f"{limit:>9} {memory:>47}               {rest}")


def missed_line(results: list[tuple[str | None, dict[str, Any]]]) -> str:
    """One line about the tolerances that were not met, or none: which or how many, the worst."""
    missed = [(name, result) for name, result in results if result["converged"] is False]
    if not missed:
        return ""
    name, worst = max(missed, key=lambda pair: relative(pair[1], "error_bound"))
    which = f"tolerance {relative(worst, 'tolerance'):.3g} not met: error bound"
    if len(missed) > 1:
        which = f"{len(missed)} of {len(results)} tolerances not met: largest error bound"
    where = f"{relative(worst, 'error_bound'):.3g} at rank {worst['rank']}"
    status = f"{worst['status']}: {Status[worst['status']].value}"
    return f"{which} {where}{f' of {name}' if name else ''}. {status}"
