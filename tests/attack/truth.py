"""The truth about a result, in more precision, and the verdicts on what the result says."""

import functools
import itertools
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from cases import norm, numbers

WIDE = {"float64": np.longdouble, "complex128": np.clongdouble}
WORST, WORST_CASES = Counter(), {}


@dataclass(frozen=True)
class Verdict:
    check: str
    ratio: float  # above one: violated
    text: str
    near: float = 0.0  # how near to it, if not


# -- truth -----------------------------------------------------------------------------------------


def slices(X, axis, bits, number):
    """X in parts of few bits relative to the largest entry of each row or column."""
    X, parts = np.array(X, dtype=np.longdouble), []
    for _ in range(number):
        largest = np.max(np.abs(X), axis=axis, keepdims=True, initial=0)
        unit = np.ldexp(np.longdouble(1), np.frexp(largest)[1] - bits)
        unit = np.where(largest > 0, unit, 1)
        part = np.rint(X / unit) * unit
        parts.append(part)
        X = X - part
    return parts


def times(X, Y, exact):
    """A product in double, or one whose errors are below 2^-60 of the norms."""
    if not exact or 0 in (*X.shape, *Y.shape):
        dtype = np.result_type(X, Y) if exact else np.result_type(X, Y, np.float64)
        return X.astype(dtype) @ Y.astype(dtype)
    if np.iscomplexobj(X) or np.iscomplexobj(Y):
        real = times(X.real, Y.real, True) - times(X.imag, Y.imag, True)
        return real + 1j * (times(X.real, Y.imag, True) + times(X.imag, Y.real, True))
    one, other = (np.longdouble(np.max(np.abs(Z))) or np.longdouble(1) for Z in (X, Y))
    Z = np.zeros((X.shape[0], Y.shape[1]), np.longdouble)
    bits = (52 - X.shape[1].bit_length()) // 2  # so that sums of products are exact in double
    number = -(-72 // bits)
    left, right = slices(X / one, 1, bits, number), slices(Y / other, 0, bits, number)
    for i, j in itertools.product(range(number), range(number)):
        if i + j < number:
            Z += left[i].astype(float) @ right[j].astype(float)
    return Z * one * other


def defect(Q, case):
    if Q.shape[-1] == 0:
        return 0.0
    limit = max(50 * Q.shape[-1] ** 0.5, 100, Q.shape[0]) * case.eps
    for exact in (False, True):
        wide = Q.astype(WIDE.get(case.working, Q.dtype)) if exact else Q
        found = norm(times(wide.conj().T, wide, exact) - np.eye(Q.shape[-1]), "fro") / limit
        if found < 0.5:
            break
    return float(found)


def factors_of(case, A, found, exact):
    """The approximation's error as an array, and the orthonormal factors."""
    wide = WIDE.get(case.working) if exact else None

    def w(X):
        X = np.asarray(numbers(X) if isinstance(X, torch.Tensor) else X)
        return X.astype(wide) if wide and X.dtype == case.working else X.astype(real) if wide else X

    real = np.longdouble
    p = functools.partial(times, exact=exact)
    match case.function:
        case "range_finder" | "RangeFinder":
            Q = w(found.Q)
            left = found.side == "left"
            return (p(Q, p(Q.conj().T, A)) if left else p(p(A, Q), Q.conj().T)), [Q]
        case "qb":
            return p(w(found.Q), w(found.B)), [w(found.Q)]
        case "svd" | "SketchedMatrix":
            U, S, Vh = map(w, found)
            U = U.astype(np.result_type(U, np.float64))
            return p(U * S, Vh), [U, Vh.conj().T]
        case "eigh" | "nystrom":
            s, V = map(w, found)
            V = V.astype(np.result_type(V, np.float64))
            return p(V * s, V.conj().T), [V]
        case "interpolative":
            X, C = w(found.coefficients), w(found.skeleton)
            return (p(C, X) if found.select == "columns" else p(X, C)), []
        case "cur":
            C, U, R = map(w, found)
            return p(p(C, U), R), []
        case "qr":
            Q, R = map(w, found)
            return p(Q, R), [Q]
        case "residual_norm":
            Q = w(found[0])
            return p(Q, p(Q.conj().T, A)), []


def judged(case, A, found):
    """The verdicts on a result."""
    eps, options = case.eps, dict(case.options)
    kind = options.get("norm", "fro") if case.function != "SketchedMatrix" else "fro"
    said = found[1] if case.function == "residual_norm" else found
    told = {name: getattr(said, name, None) for name in ("error", "error_bound", "norm_A",
            "tolerance", "converged", "upper_bound", "value")}  # fmt: skip
    for name, value in told.items():
        if value is not None and math.isnan(value):
            yield Verdict("nan", 2, f"{name} is NaN")
            return
    if getattr(said, "rank", None) == 0 and said.error_bound is None:
        return  # nothing is found, and nothing said
    if case.poison and options.get("check_finite", True) and case.function != "qr":
        yield Verdict("poison", 2, f"a result of a matrix with {case.poison}")
    if case.poison:
        return
    bound = told["upper_bound"] if case.function == "residual_norm" else told["error_bound"]
    wide = WIDE.get(case.working)
    for exact in (False, True) if wide and not case.scale else (bool(wide),):
        T = A.astype(wide) if exact else A.astype(np.result_type(A, np.float64))
        if case.function == "svd" and options.get("center"):
            mean = found.mean
            T = T - np.asarray(numbers(mean) if isinstance(mean, torch.Tensor) else mean)
        product, bases = factors_of(case, T, found, exact)
        truth, size = norm(T - product, kind), norm(T, kind)
        if exact or bound is None or truth < bound - 1e3 * eps * max(*A.shape) * size:
            break
    if not np.isfinite(truth):
        yield Verdict("nan", 2, f"a factor is not finite, bound {bound}")
        return
    # numbers near the smallest are rounded to multiples of it, each once in a norm
    quantum = float(np.finfo(case.working).smallest_subnormal) * 4 * A.size**0.5
    margin = 1e-10 * truth + 0.01 * eps * size + quantum
    # the simulated GPU has the kernels of the CPU, whose norm adds in sequence
    bias = (40 + 0.2 * max(A.shape)) * eps if case.library == "cuda" else 0.0
    margin += bias * truth
    if case.function == "cur":  # a product of three, whose parts may be far larger than it
        margin += 2.0**-60 * math.prod(norm(numbers(X), "fro") for X in found)
    text = f"truth {truth:.4g}, bound {bound}, norm {size:.4g}, tolerance {told['tolerance']}, "
    text += f"{getattr(said, 'status', None)}, rank {getattr(said, 'rank', None)}, "
    text += f"certificate {getattr(said, 'certificate', None)}"
    if bound is not None:
        ratio = float(truth / bound) if bound > 0 else math.inf if truth > 0 else 0.0
        near = float(1 / (1 + max(bound - truth, 0) / (30 * eps * size or 1)))
        violated = truth - margin > bound
        key = f"{getattr(said, 'certificate', 'sampled')} {kind}"
        if ratio > WORST[key]:
            WORST[key], WORST_CASES[key] = ratio, case
        yield Verdict("bound", max(ratio, 1 + 1e-9) if violated else 0, text, (ratio + near) / 3)
        if told["converged"] and bound > told["tolerance"]:
            yield Verdict("converged", bound / told["tolerance"], text)
    if told["converged"] and case.rtol is not None:
        goal = max(step[1] for step in (*case.history, ("", case.rtol)) if step[1] < 2)
        if case.function != "RangeFinder" or not case.history:
            allowed = told["tolerance"] if case.absolute else goal * size
            excess = truth / (allowed * (1 + 100 * eps) + margin) if truth else 0.0
            yield Verdict("tolerance", float(excess), text, float(excess) / 2)
    if told["norm_A"] is not None and case.function != "SketchedMatrix":
        limit = size * (1 + bias + 100 * eps) + quantum
        ratio = told["norm_A"] / limit if size else told["norm_A"]
        yield Verdict("norm", float(ratio), f"norm_A {told['norm_A']}, true {size}", ratio / 2)
    for Q in bases:
        ratio = defect(np.asarray(Q), case)
        WORST[f"defect {case.working}"] = max(WORST[f"defect {case.working}"], ratio)
        text_of_Q = f"‖QᴴQ − I‖ {ratio:.3g} times the limit, {Q.shape}; {text}"
        yield Verdict("defect", ratio, text_of_Q, min(1.0, ratio))
    if case.function == "qr":
        ratio = float(truth / (max(100, *A.shape) * eps * size + 1e-300)) if size else 0
        yield Verdict("qr", ratio if not case.scale else 0, text, ratio)
    least = (1e-13 if eps < 1e-10 else 1e-5) * (
        1 if case.function in ("range_finder", "RangeFinder", "qb", "svd") else 10
    )
    if told["converged"] is False and is_certifiable(case, least):
        rank = getattr(said, "rank", 0)
        if case.rtol >= max(least, 6 * eps * max(rank, 1) ** 0.5):
            yield Verdict("refusal", 2, text)


def is_certifiable(case, least):
    return (
        case.family.startswith("gallery")
        and case.rtol is not None
        and case.rtol >= least
        and case.rank is None
        and not (case.scale or case.grade or case.state or case.history)
        and not dict(case.options).get("center")
    )
