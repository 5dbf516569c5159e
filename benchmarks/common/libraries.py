"""Packages that may be missing."""

import sys
from importlib import import_module
from importlib.util import find_spec, module_from_spec
from typing import Any


def module_of(package: str, module: str) -> Any:
    """A module of a package, whose own `__init__`, which wants more packages, is not run."""
    if package not in sys.modules:
        spec = find_spec(package)
        if spec is None:
            message = f"{package} is not installed"
            raise ModuleNotFoundError(message)
        sys.modules[package] = module_from_spec(spec)
    return import_module(f"{package}.{module}")
