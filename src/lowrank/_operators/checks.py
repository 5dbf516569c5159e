"""Checks of options: each returns the value, or raises an error that shows it."""

import operator
from typing import Any

from lowrank._array import Array
from lowrank._array.tuning import tuning
from lowrank._operators import Operator


def as_count(value: Any, name: str, *, least: int = 0) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an integer, got {value!r}.") from None
    if count < least:
        raise ValueError(f"`{name}` must be at least {least}, got {count}.")
    return count


def as_rank(rank: Any, k: int, name: str) -> int:
    """A rank given as a number, or as a fraction of k (a float below 1)."""
    if isinstance(rank, float) and 0.0 < rank < 1.0:
        return max(1, int(rank * k))
    if isinstance(rank, float) and rank.is_integer():
        rank = int(rank)
    return as_count(rank, name, least=1)


def as_block_size(block_size: int | None, like: Array) -> int:
    if block_size is None:
        return tuning(like).block_size
    return as_count(block_size, "block_size", least=1)


def as_failure_probability(value: Any) -> float:
    if not 0.0 < value < 1.0:
        raise ValueError(f"`failure_probability` must lie between 0 and 1, got {value!r}.")
    return float(value)


def as_norm(norm: str) -> str:
    if norm not in ("fro", "spectral"):
        raise ValueError(f"`norm` must be 'fro' or 'spectral', got {norm!r}.")
    return norm


def as_certificate(certificate: Any, A: Operator) -> str:
    """How the error of an approximation of A is known; None chooses by the kind of A."""
    if certificate is None:
        if A.explicit is not None:
            return "exact"
        return "sampled" if A.norm is None else "energy"
    if certificate not in ("exact", "energy", "sampled"):
        raise ValueError(
            "`certificate` must be 'exact', 'energy', 'sampled' or None (automatic), got "
            f"{certificate!r}."
        )
    if certificate == "exact" and A.explicit is None and not A.is_stack:
        raise TypeError(
            "`certificate` 'exact' needs an array in memory, which is copied; pass one, or "
            "certificate=None, which chooses what this matrix allows."
        )
    if certificate == "energy" and A.norm is None:
        raise TypeError(
            "`certificate` 'energy' needs the Frobenius norm of `A`, which is unknown for an "
            "operator; use 'sampled', or None (automatic)."
        )
    return str(certificate)
