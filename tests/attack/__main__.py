"""Search for matrices, options and histories that break what the certificates promise.

    python tests/attack [--minutes 60] [--seed 0] [--only TEXT] [--skip TEXT ...]
    python tests/attack --case "{...}"

A case is evolved: of a few mutants the one nearest to a violation lives on. What is violated is
minimized and printed once for each kind, as a case that `--case` runs again. The truth is computed
by NumPy: for single precision in double, for double precision by exact products of slices of few
bits, added in long double. A violation counts where the truth exceeds its bound by more than 1e-10
of itself, 0.01 eps of the norm and a few of the smallest numbers. Failure probabilities are 1e-9
at most: no violation is chance.
"""

import argparse
import contextlib
import itertools
import math
import random
import signal
import sys
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tensors that pretend
from calls import STATES, process, results, settings
from cases import (
    FAMILIES,
    KINDS,
    OF_PRODUCTS,
    OF_SEED,
    Case,
    matrix,
    norm,
    numbers,
    quietly,
    wrapped,
)
from pretended import pretending
from truth import WORST, WORST_CASES, Verdict, judged

import lowrank

LIMIT = 30  # seconds for a case
NAMES = ("float32", "float64", "complex64", "complex128", "float16", "bfloat16")
FUNCTIONS = [
    "range_finder",
    "RangeFinder",
    "qb",
    "svd",
    "eigh",
    "nystrom",
    "interpolative",
    "cur",
    "residual_norm",
    "qr",
    "SketchedMatrix",
]


class Slow(BaseException):
    pass


def place(case):
    return pretending() if case.library == "cuda" else contextlib.nullcontext()


def attacked(case):
    """The verdicts on a case."""
    verdicts = []

    def late(*_):
        raise Slow

    with place(case):
        A = matrix(case)
    with quietly():
        argument = wrapped(case, A)
        largest = norm(A.astype(np.clongdouble), "fro")
    copy, whole = numbers(argument), bool(case.poison)
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    found, told, before, after = [], [], None, None
    try:
        with place(case), process(case.state), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            before = settings()
            try:
                found.extend(results(case, argument, A))
            finally:
                after = settings()
    except ValueError as error:
        top = float(np.finfo(case.working).max)
        if not (whole or largest > top / 16 or "exceeds the largest number" in str(error)):
            verdicts.append(Verdict(f"ValueError: {str(error)[:40]}", 2, str(error)))
    except RuntimeError as error:
        if not (dict(case.options).get("overwrite_a") and "overwrite_a" in str(error)):
            verdicts.append(Verdict(f"RuntimeError: {str(error)[:40]}", 2, str(error)))
    except Slow:
        verdicts.append(Verdict("slow", 2, f"more than {LIMIT} s"))
    except Exception as error:
        if sys.exc_info()[2].tb_next is None:
            raise
        verdicts.append(Verdict(f"{type(error).__name__}: {str(error)[:40]}", 2, str(error)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.settrace(None)
    for warning in told:
        if not issubclass(warning.category, lowrank.ConvergenceWarning):
            words = f"{warning.category.__name__}: {str(warning.message)[:60]}"
            verdicts.append(Verdict(f"warning {words}", 2, words))
    if before is not None and after is not None and "switched" not in case.state:
        verdicts += [
            Verdict(f"settings {key}", 2, f"{before[key]} became {after[key]}")
            for key in before
            if before[key] != after[key]
        ]
    may_change = copy is None or dict(case.options).get("overwrite_a")
    if not may_change and not np.array_equal(numbers(argument), copy, equal_nan=True):
        verdicts.append(Verdict("input", 2, "the input was modified"))
    for result in found:
        with quietly():
            verdicts += list(judged(case, A, result))
    return verdicts


# -- evolution -------------------------------------------------------------------------------------

LENGTHS = (1, 2, 3, 17, 60, 100, 130, 140, 150, 160, 200, 257, 300, 400)
OPTIONS = {
    "norm": ("spectral",),
    "certificate": ("exact", "energy", "sampled"),
    "power_iterations": (0, 1, 2, 3),
    "krylov": (True,),
    "block_size": (1, 5, 8, 32, 64, 1000),
    "side": ("right",),
    "failure_probability": (1e-15,),
    "oversampling": (0, 1, 50),
    "center": (True,),
    "overwrite_a": (True,),
    "select": ("rows",),
    "check": (True,),
    "check_finite": (False,),
}


def drawn_shape(r):
    if r.random() < 0.01:
        return r.choice([(100_000, 20), (20, 100_000), (50_000, 3)])
    if r.random() < 0.6:
        return r.choice(LENGTHS[5:]), r.choice(LENGTHS[5:])
    return r.choice(LENGTHS), r.choice(LENGTHS)


def drawn_rtol(r):
    if r.random() < 0.08:
        return None
    return (
        r.choice([0.9, 0.7, 0.5, 0.3, 0.1, 0.03]) if r.random() < 0.4 else 10 ** r.uniform(-16, -1)
    )


def drawn_history(r):
    steps = {
        "extend": r.choice((1, 2, 8, 40)),
        "reach": r.choice((0.9, 0.3, 1e-3, 1e-8)),
        "raise": 0.01, "stop": 0.01, "nest": 0.01,
        "interrupt": r.randint(2, 2500),
        "nan": r.randint(2, 6), "fail": r.randint(2, 6),
    }  # fmt: skip
    return tuple((kind, steps[kind]) for kind in r.sample(sorted(steps), r.randint(0, 3)))


def drawn_poison(r):
    value = r.choice((math.nan, math.inf, -math.inf))
    return (value, r.choice(("first", "middle", "last"))) if r.random() < 0.06 else ()


GENES = {
    "family": lambda r: r.choice(OF_SEED) if r.random() < 0.2 else r.choice(sorted(FAMILIES)),
    "shape": drawn_shape,
    "seed": lambda r: r.randrange(100),
    "dtype": lambda r: r.choices(NAMES, (4, 4, 2, 2, 1, 1))[0],
    "scale": lambda r: (
        r.choice(("max", "overflow", "root_of_max", "root_of_tiny", "tiny", "subnormal", "quantum"))
        if r.random() < 0.15
        else ""
    ),
    "grade": lambda r: r.choice((0, 0, 0, 0, 2, 8, 16)),
    "library": lambda r: r.choices([*KINDS], (5, 4, 0.5, 3))[0],
    "kind": lambda r: "array" if r.random() < 0.5 else r.choice([*KINDS["numpy"].split(), "grad"]),
    "rtol": drawn_rtol,
    "absolute": lambda r: r.random() < 0.1,
    "rank": lambda r: r.choice((0, 1, 5, 40, 1000)) if r.random() < 0.15 else None,
    "options": lambda r: tuple(
        (name, r.choice(OPTIONS[name]))
        for name in r.sample(sorted(OPTIONS), r.choice((0, 1, 1, 2, 3)))
    ),
    "state": lambda r: tuple({r.choice(STATES) for _ in range(r.choice((0, 0, 0, 1, 1, 2)))}),
    "history": drawn_history,
    "poison": drawn_poison,
}


def sane(case):
    """The nearest case that the documentation allows."""
    changed, options = {}, dict(case.options)
    if case.function == "nystrom" and "float16" in case.dtype:  # rounded, it is not semidefinite
        case = replace(case, dtype="float32")
    if case.dtype == "bfloat16":
        changed["library"] = "torch"
    library = changed.get("library", case.library)
    if library == "cuda":
        changed["state"] = tuple(name for name in case.state if name in ("raise", "grown"))
    kind, half = case.kind, "float16" in case.dtype
    if kind == "conjugated" and "complex" not in case.dtype:
        kind = "array"
    if kind not in KINDS[library].split() or (half and kind in ("sparse", "swapped")):
        kind = "array"
    if case.function in ("qr", "SketchedMatrix") and kind in (*OF_PRODUCTS, "readonly", "swapped"):
        kind = "array"
    if library == "strict" and half:
        changed["library"] = "numpy"
    if kind in OF_PRODUCTS or kind == "broadcast":
        if options.get("certificate") == "exact" or kind in ("linear_operator", "products"):
            options.pop("certificate", None)
        options.pop("overwrite_a", None)
    if half and kind in ("linear_operator", "products"):
        kind = "array"
    if kind == "broadcast" and case.function in ("eigh", "nystrom"):
        kind = "array"
    if "inference" in case.state and kind == "grad":
        kind = "array"
    if options.get("krylov") and options.get("power_iterations") == 0:
        del options["krylov"]
    if case.function == "RangeFinder" and options.get("check_finite") is False:
        del options["check_finite"]
    if "flush" in case.state and case.scale in ("tiny", "subnormal", "quantum"):
        changed["scale"] = ""
    if case.scale == "overflow" and case.function in ("SketchedMatrix", "residual_norm", "qr"):
        changed["scale"] = ""
    if case.scale and case.function in ("SketchedMatrix", "nystrom"):
        changed["scale"] = ""
    if case.function in ("eigh", "nystrom"):
        changed["shape"] = (min(case.shape[0], 400),) * 2
    if case.function not in ("RangeFinder", "SketchedMatrix"):
        changed["history"] = ()
    if case.function == "SketchedMatrix":
        changed["history"] = tuple(
            ("rows", 1) if k < "j" else ("update", len(k)) for k, _ in case.history
        )
    if changed.get("history", case.history) or kind == "broadcast":
        changed["poison"] = ()
    if case.function == "RangeFinder" and case.rtol is None:
        changed["rtol"] = 0.1
    return replace(case, kind=kind, options=tuple(sorted(options.items())), **changed)


def drawn(r, function):
    case = Case(function, **{name: gene(r) for name, gene in GENES.items()})
    if case.family in OF_SEED and r.random() < 0.7:
        case = replace(case, options=(("certificate", "sampled"), *case.options[:1]), scale="")
    return sane(case)


def mutated(r, case):
    names = r.sample(sorted(GENES), r.choice((1, 1, 2, 3)))
    return sane(replace(case, **{name: GENES[name](r) for name in names}))


def simpler(case):
    """Cases with one thing less, or plainer."""
    plain = Case()
    for name in ("state", "options", "history", "poison"):
        value = getattr(case, name)
        if value:
            yield replace(case, **{name: ()})
            for i in range(len(value) if name != "poison" else 0):
                yield replace(case, **{name: value[:i] + value[i + 1 :]})
    for name in ("kind", "scale", "grade", "absolute", "rank", "library", "dtype", "function"):
        if getattr(case, name) != getattr(plain, name):
            yield replace(case, **{name: getattr(plain, name)})
    for family in ("ones", "gaussian", "identity", "gallery_slow", "ones_but_one", "residual"):
        if case.family == family:
            break
        yield replace(case, family=family)
    for dtype in ("float64", "float32"):
        if case.dtype == dtype:
            break
        yield replace(case, dtype=dtype)
    m, n = case.shape
    for shape in ((m // 2, n // 2), (m // 2, n), (m, n // 2), (m * 9 // 10, n), (m, n * 9 // 10)):
        if min(shape) > 0 and shape != case.shape:
            yield replace(case, shape=shape)
    for rtol in (0.5, 0.1, 1e-2, 1e-4, 1e-8, 1e-12):
        if case.rtol is not None and case.rtol < rtol * 0.99:
            yield replace(case, rtol=rtol)
    for seed in range(min(3, case.seed)):
        yield replace(case, seed=seed)


def violations(case):
    return {v.check: v for v in attacked(case) if v.ratio > 1}


def minimized(case, check, seconds=25):
    since, progress = time.monotonic(), True
    while progress and time.monotonic() - since < seconds:
        progress = False
        for candidate in map(sane, simpler(case)):
            if candidate == case or time.monotonic() - since > seconds:
                continue
            with contextlib.suppress(Exception):
                if check in violations(candidate):
                    case, progress = candidate, True
                    break
    return case


def kind_of(case, check):
    group = "products" if case.kind in OF_PRODUCTS else "array"
    certificate = dict(case.options).get("certificate", "")
    step = case.history[-1][0] if case.history else ""
    return (case.function, check, group, case.family in OF_SEED and case.family, certificate,
            case.library, case.state[:1], step, case.scale)  # fmt: skip


def report(case, verdict):
    print(f"\n{case.function}: {verdict.check}: {verdict.text}", flush=True)
    print(f'  --case "{case.told()}"', flush=True)


def search(chosen):
    r, seen, told, count, kinds = random.Random(chosen.seed), Counter(), {}, Counter(), set()
    end = time.monotonic() + 60 * chosen.minutes
    functions = [name for name in FUNCTIONS if chosen.only in name] or FUNCTIONS
    for function in itertools.cycle(functions):
        best, score, stale = drawn(r, function), -1.0, 0
        while stale < 3:
            stale += 1
            start = best
            for i in range(6):
                if time.monotonic() > end:
                    return count, told
                case = start if i == 0 and score < 0 else mutated(r, start)
                if any(text in str(case.told()) for text in chosen.skip):
                    continue
                count[function] += 1
                verdicts = attacked(case)
                near = max((v.near for v in verdicts if v.ratio <= 1), default=0.0)
                for verdict in verdicts:
                    if verdict.ratio <= 1:
                        continue
                    raw = kind_of(case, verdict.check)
                    seen[raw] += 1
                    near += 1 / seen[raw]  # what is known already is not sought again
                    if seen[raw] > 1:
                        continue
                    small = minimized(case, verdict.check)
                    kind = kind_of(small, verdict.check)
                    if kind not in kinds:
                        kinds.add(kind)
                        again = violations(small).get(verdict.check, verdict)
                        told[repr(small.told())] = again
                        report(small, again)
                if near > score:
                    best, score, stale = case, near, 0
    return count, told


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of the name of a function")
    parser.add_argument("--skip", nargs="*", default=[], help="what is known, as autocast medium")
    parser.add_argument("--case", help="run one case, as printed")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.case:
        given = eval(chosen.case, {"nan": math.nan, "inf": math.inf})
        for verdict in attacked(Case(**given)):
            print(f"{verdict.check}: {verdict.ratio:.4g}: {verdict.text}")
        return 0
    count, told = search(chosen)
    print("\ncases: " + ", ".join(f"{name} {number}" for name, number in count.items()))
    for key, ratio in sorted(WORST.items()):
        print(f"worst {key}: {ratio:.6g}")
        if ratio > 1 and key in WORST_CASES:
            print(f'  --case "{WORST_CASES[key].told()}"')
    print(f"{len(told)} kinds of violations")
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main())
