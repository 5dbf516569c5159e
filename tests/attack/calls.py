"""What the search does to a process, and the calls of a case."""

import contextlib
import inspect
import math
import sys

import numpy as np
import torch
from cases import InjectedError, Products, norm, quietly, wanted

import lowrank
from lowrank._rangefinder import growth

# -- the process -----------------------------------------------------------------------------------


def settings():
    backends, legacy = {}, None
    with contextlib.suppress(RuntimeError):  # of a mix of both ways to set it
        legacy = torch.get_float32_matmul_precision()
    for path in ("", "mkldnn", "mkldnn.matmul", "cuda.matmul", "cudnn"):
        place = torch.backends
        for name in path.split(".") if path else ():
            place = getattr(place, name, None)
        for name in ("fp32_precision", "allow_tf32"):
            with contextlib.suppress(AttributeError, RuntimeError):
                backends[path, name] = getattr(place, name)
    return {
        "numpy errors": np.geterr(),
        "matmul precision": legacy,
        "backends": backends,
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "default dtype": torch.get_default_dtype(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "threads": torch.get_num_threads(),
        "random": (torch.get_rng_state().sum().item(), np.random.get_state()[1].sum()),  # noqa: NPY002
        "flushed": float(np.float64(1e-310) * np.float64(1.0)) == 0.0,
        "trace": sys.gettrace(),
    }


@contextlib.contextmanager
def process(names):
    with contextlib.ExitStack() as stack:
        stack.callback(np.seterr, **np.geterr())
        for name in names:
            match name:
                case "medium" | "high":
                    stack.callback(torch.set_float32_matmul_precision, "highest")
                    torch.set_float32_matmul_precision(name)
                case "mkldnn":
                    place = torch.backends.mkldnn.matmul
                    stack.callback(setattr, place, "fp32_precision", place.fp32_precision)
                    place.fp32_precision = "bf16"
                case "autocast":
                    stack.enter_context(torch.autocast("cpu", torch.bfloat16))
                case "flush":
                    stack.callback(torch.set_flush_denormal, False)
                    torch.set_flush_denormal(True)
                case "inference":
                    stack.enter_context(torch.inference_mode())
                case "double":
                    stack.callback(torch.set_default_dtype, torch.get_default_dtype())
                    torch.set_default_dtype(torch.float64)
                case "raise":
                    np.seterr(all="raise", under="ignore")
                case "grown":  # no SVD of A itself, as if it were larger
                    stack.callback(setattr, growth, "svd_is_cheaper", growth.svd_is_cheaper)
                    growth.svd_is_cheaper = lambda *_, **__: False
                case "switched":
                    stack.callback(torch.set_float32_matmul_precision, "highest")
        yield


STATES = [
    "medium",
    "high",
    "mkldnn",
    "autocast",
    "flush",
    "inference",
    "double",
    "raise",
    "raise",
    "grown",
    "grown",
    "switched",
]


@contextlib.contextmanager
def interrupted(lines):
    """KeyboardInterrupt at so many lines of the library from here."""
    left = [lines]

    def trace(frame, event, arg):
        if "lowrank" not in frame.f_code.co_filename:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)


# -- calls -----------------------------------------------------------------------------------------


def stop_of(case, A):
    if case.rtol is None:
        return {"rank": min(5, *A.shape) if case.rank is None else case.rank}
    given = {"rtol": case.rtol}
    if case.absolute:
        kind = dict(case.options).get("norm", "fro")
        with quietly():
            given = {"atol": case.rtol * float(norm(A.astype(np.clongdouble), kind))}
    return given if case.rank is None else given | {"rank": case.rank}


def results(case, argument, A):
    """Every result of the calls of a case."""
    name, stop = case.function, stop_of(case, A)
    options = wanted(case, name) if name != "SketchedMatrix" else {}
    if name not in ("qr", "residual_norm"):
        options["rng"] = case.seed
    hook = [None]

    def called(look):
        if "switched" in case.state:
            torch.set_float32_matmul_precision("medium")
        if hook[0] is not None:
            hook[0](look)

    if "callback" in inspect.signature(getattr(lowrank, name)).parameters:
        options["callback"] = called
    if name == "RangeFinder":
        finder = lowrank.RangeFinder(argument, **options)
        for step in case.history:
            before = finder.rank
            with contextlib.suppress(InjectedError, KeyboardInterrupt):
                taken(case, finder, step, hook, argument, stop)
            hook[0] = None
            assert finder.rank >= before, "the basis has become smaller"
            yield finder.result()
        stop.pop("rank", None)
        yield finder.reach(**stop).result()
    elif name == "residual_norm":
        given = {"rank": 5} if case.rtol is None else {"rtol": max(case.rtol, 1e-6)}
        Q = lowrank.range_finder(argument, rng=case.seed, **given).Q
        rest = {key: options[key] for key in ("norm",) if key in options}
        yield Q, lowrank.residual_norm(argument, Q, rng=case.seed, **rest)
    elif name == "SketchedMatrix":
        rank = min(5, *A.shape) if case.rank is None else min(case.rank, *A.shape)
        like = argument[:0, :]
        sketch = lowrank.SketchedMatrix(A.shape, rank, like=like, rng=case.seed)
        for step in case.history or (("update", 1),):
            if step[0] == "rows":
                for start in range(0, A.shape[0], 50):
                    sketch.update_rows(
                        start, argument[start : min(start + 50, A.shape[0]), :], eta=0.5
                    )
                sketch.update(argument, eta=0.5)
            else:
                sketch.update(argument, theta=0.0 if step[1] > 3 else 1 - step[1])
                sketch.update(argument, theta=0.5, eta=0.5)
            yield sketch.svd()
            sketch.update(argument, theta=1.0, eta=-1.0)
    elif name == "qr":
        yield lowrank.qr(argument)
    elif name == "nystrom":
        options.pop("callback", None)
        yield lowrank.nystrom(argument, **options, **({"rank": 5} | stop_of_rank(stop)))
    else:
        yield getattr(lowrank, name)(argument, **options, **stop)


def stop_of_rank(stop):
    return {"rank": stop["rank"]} if "rank" in stop else {}


def taken(case, finder, step, hook, argument, stop):
    """One step of a history."""
    kind, amount = step
    rtol = stop.get("rtol", 0.1) * 2 if isinstance(amount, int) else amount

    def thrown(error):
        def hooked(look):
            raise error

        return hooked

    def nested(look):
        lowrank.svd(np.eye(140) + np.ones((140, 140)), rtol=0.1, rng=case.seed)
        finder.result()

    match kind:
        case "extend":
            finder.extend(amount)
        case "reach":
            finder.reach(rtol=rtol)
        case "raise":
            hook[0] = thrown(InjectedError())
            finder.reach(rtol=rtol)
        case "stop":
            hook[0] = thrown(StopIteration())
            finder.reach(rtol=rtol)
        case "nest":
            hook[0] = nested
            finder.reach(rtol=rtol)
        case "interrupt":
            with interrupted(amount):
                finder.reach(rtol=rtol)
        case "nan" | "fail":
            is_array = isinstance(argument, np.ndarray | torch.Tensor) and case.kind == "array"
            if isinstance(argument, Products):
                argument.fails, argument.how = amount, "raise" if kind == "fail" else "nan"
            elif not is_array or dict(case.options).get("overwrite_a"):
                return
            before = None if isinstance(argument, Products) else argument[0, 0] * 1
            if before is not None:
                argument[0, 0] = math.nan
            try:
                with contextlib.suppress(ValueError):
                    finder.extend(2)
                    finder.reach(rtol=rtol)
            finally:
                if before is not None:
                    argument[0, 0] = before
                else:
                    argument.fails = 0
