"""The options that the range finder and all factorizations share: names, defaults, docstrings."""

import inspect
import re
import textwrap
from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, TypedDict, TypeVar

from lowrank._array.arithmetic import in_full_precision
from lowrank.results import Look

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Options(TypedDict, total=False):
    """The options of :class:`RangeFinder`."""

    norm: Literal["fro", "spectral"]
    power_iterations: int | None
    krylov: bool
    block_size: int | None
    test_matrix: Any
    rng: Any
    failure_probability: float
    certificate: Literal["exact", "energy", "sampled"] | None
    overwrite_a: bool
    check: bool
    check_finite: bool
    callback: Callable[[Look], object] | None


class Tolerances(Options, total=False):
    """These, and the tolerances."""

    rtol: float | None
    atol: float | None


DEFAULTS: dict[str, Any] = dict.fromkeys(Tolerances.__annotations__) | {
    "norm": "fro",
    "krylov": False,
    "failure_probability": 1e-9,
    "overwrite_a": False,
    "check": False,
    "check_finite": True,
}
SHARED_TEXT = {
    "<matrix>": """\
Real or complex, float32 or float64 (float16 and bfloat16 are computed in float32). Or a
sparse matrix of SciPy, CuPy or PyTorch; or an operator, see :class:`RangeFinder`""",
    "<options>": """\
norm : {"fro", "spectral"}
    Norm of tolerance, error and bound.
power_iterations : int, optional
    Number of products with ``A Aᴴ`` for each block. Default: at a fixed rank 2 (0 for
    :func:`range_finder` and :func:`qb`, 1 with `krylov`). To a tolerance it depends on A, see
    :class:`RangeFinder`; for arrays on a CPU, blocks then continue a Krylov space, which takes
    fewer products than power iterations.
krylov, block_size, test_matrix, rng, failure_probability, certificate, overwrite_a, check, \
check_finite, callback
    As for :class:`RangeFinder`.""",
    "<raises>": """\
TypeError
    If A is not an array, sparse matrix or operator of floating dtype; if `rng` or
    `test_matrix` belongs to another library or device; or if the certificate is exact and A
    is not an array in memory.""",
    "<warns>": """\
ConvergenceWarning
    If a tolerance was given, and the error bound is above it.""",
}


def shares_options(function: _Function) -> _Function:
    """Give a function with ``**options`` the signature and docstring of the shared options."""
    names = inspect.get_annotations(function)["options"].__args__[0].__annotations__
    given = inspect.signature(function)
    own = [p for p in given.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    keyword = inspect.Parameter.KEYWORD_ONLY
    shared = [
        inspect.Parameter(name, keyword, default=DEFAULTS[name], annotation=annotation)
        for name, annotation in names.items()
        if name not in given.parameters
    ]
    accepted = {p.name for p in (*own, *shared)}

    @wraps(function)
    @in_full_precision
    def checked(*args: Any, **options: Any) -> Any:
        for name in options.keys() - accepted:
            called = function.__qualname__.removesuffix(".__init__")
            raise TypeError(f"{called}() got an unexpected keyword argument {name!r}")
        return function(*args, **options)

    # tolerances first, as in every docstring, then the function's own options, then shared ones
    parameters = sorted(
        (*own, *shared), key=lambda p: (p.kind is keyword, p.name not in ("rtol", "atol"))
    )
    checked.__signature__ = given.replace(parameters=parameters)  # type: ignore[attr-defined]
    checked.__doc__ = with_shared_text(function.__doc__)
    return checked  # type: ignore[return-value]


def with_shared_text(text: str | None) -> str | None:
    """A docstring with its markers, such as ``<options>``, replaced by the shared text."""
    if text is None:  # python -OO
        return None

    def words(found: re.Match[str]) -> str:
        indent, before, marker = found.groups()
        return indent + before + textwrap.indent(SHARED_TEXT[marker], indent).lstrip()

    return re.sub(rf"^( *)(.*)({'|'.join(SHARED_TEXT)})", words, text, flags=re.MULTILINE)
