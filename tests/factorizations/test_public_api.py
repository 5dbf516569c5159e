import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import lowrank

MODULES = sorted(module.name for module in pkgutil.walk_packages(lowrank.__path__, "lowrank."))

PUBLIC = {
    "CURResult",
    "ConvergenceWarning",
    "EighResult",
    "ErrorEstimate",
    "HouseholderQR",
    "IDResult",
    "Look",
    "Progress",
    "QBResult",
    "QRResult",
    "RangeFinder",
    "RangeFinderResult",
    "RowBlocks",
    "SVDResult",
    "SketchedMatrix",
    "Status",
    "__version__",
    "bounds",
    "compress",
    "cur",
    "eigh",
    "gallery",
    "householder_qr",
    "interpolative",
    "load",
    "nystrom",
    "qb",
    "qr",
    "range_finder",
    "residual_norm",
    "svd",
}


def test_names():
    assert set(lowrank.__all__) == PUBLIC
    visible = {
        name
        for name, value in vars(lowrank).items()
        if not name.startswith("_")
        and not (inspect.ismodule(value) and name not in ("bounds", "compress", "gallery"))
    }
    assert visible == PUBLIC - {"__version__"}


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is(name):
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("name", [name for name in MODULES if "._" not in name])
def test_every_public_module_lists_its_names(name):
    module = importlib.import_module(name)
    listed = set(module.__all__)
    assert all(hasattr(module, key) for key in listed)
    # what is not listed starts with an underscore
    defined = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and getattr(value, "__module__", None) == name
    }
    assert defined <= listed


@pytest.mark.parametrize(
    "function",
    [
        lowrank.qr,
        lowrank.householder_qr,
        lowrank.range_finder,
        lowrank.RangeFinder,
        lowrank.qb,
        lowrank.svd,
        lowrank.eigh,
        lowrank.nystrom,
        lowrank.interpolative,
        lowrank.cur,
        lowrank.residual_norm,
    ],
    ids=lambda function: function.__name__,
)
def test_arrays_by_position_options_by_name(function):
    parameters = inspect.signature(function).parameters
    assert parameters["A"].kind is inspect.Parameter.POSITIONAL_ONLY
    free = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert set(free) <= {"rank", "B"}
    assert not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__", "bounds", "gallery"}))
def test_docstrings(name):
    value = getattr(lowrank, name)
    assert value.__doc__
    if inspect.isfunction(value):
        for section in ("Parameters", "Returns", "Raises", "Notes", "Examples"):
            assert f"{section}\n    ---" in value.__doc__, section
        for parameter in inspect.signature(value).parameters:
            assert parameter in value.__doc__


def test_version_is_that_of_the_distribution():
    from importlib.metadata import version  # noqa: PLC0415

    assert lowrank.__version__ == version("lowrank-xp")
    citation = Path(__file__).parents[2] / "CITATION.cff"
    assert f"\nversion: {lowrank.__version__}\n" in citation.read_text(encoding="utf-8")
