"""Tensors of checkpoints: how they are read, factorized and written, and what became of them."""

import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from lowrank._factorizations.svd import svd
from lowrank.results import ConvergenceWarning, SVDResult

SKIP = "embed|wte|wpe|lm_head"
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
# The file that holds each tensor: its path, and the open file.
Tensors = dict[str, tuple[Path, Any]]


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one tensor of a checkpoint. Norms are Frobenius norms.

    Attributes
    ----------
    name : str
        Name of the tensor.
    shape : tuple of int
        Its shape.
    nbytes : int
        Its size in the checkpoint.
    written : int
        The size of what was written for it.
    rank : int or None
        Rank of its factors; None if it has none, for the reason in `note`.
    norm : float
        Norm of the matrix that was factorized: of the weight, or of the difference.
    error_bound : float
        Bound on the error of the factors, absolute.
    base_norm : float
        Norm of the tensor before the change; for a factorized weight the same as `norm`.
    converged : bool or None
        Whether the error bound is within the tolerance (of an adapter: or what is left is the
        rounding of the weights); None without factors or without `rtol`.
    note : str
        Why there are no factors, or empty.
    """

    name: str
    shape: tuple[int, ...]
    nbytes: int
    written: int = 0
    rank: int | None = None
    norm: float = 0.0
    error_bound: float = 0.0
    base_norm: float = 0.0
    converged: bool | None = None
    note: str = ""


Callback = Callable[[Change, int], object]


def svd_of(name: str, X: Any, rank: int | None, rtol: float | None, **options: Any) -> SVDResult:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a Change has the error
            return svd(X, rank, rtol=rtol, **options)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def counted_down(names: list[str]) -> Iterator[tuple[int, str]]:
    """Each name, and how many are left after it."""
    return zip(reversed(range(len(names))), names, strict=True)


def wide(X: Any) -> Any:
    return X.to(torch.float64 if X.dtype == torch.float64 else torch.float32)


def layer_of(name: str) -> str:
    return name.removesuffix(".weight")


def opened(model: str | PathLike[str], device: Any) -> tuple[Tensors, str]:
    """The tensors of a checkpoint by name, and the name of its index, if it has one."""
    path, index = Path(model), ""
    files = [path]
    if path.is_dir():
        path = next(iter(sorted(path.glob("*.safetensors.index.json"))), path)
        files = sorted(path.glob("*.safetensors"))
    if path.suffix == ".json":
        shards = json.loads(path.read_text("utf-8"))["weight_map"].values()
        files, index = [path.parent / shard for shard in sorted(set(shards))], path.name
    if not files:
        raise FileNotFoundError(f"{model} is a directory without .safetensors files.")
    held: dict[Path, Any] = {file: safe_open(file, "pt", device=str(device)) for file in files}
    return {name: (path, file) for path, file in held.items() for name in file.keys()}, index  # noqa: SIM118


@contextmanager
def appearing(output: str | PathLike[str], overwrite: bool, *, folder: bool) -> Iterator[Path]:
    """A temporary directory whose files become `output` when all of them are complete."""
    target = Path(output).resolve()  # a link stays a link
    if target.exists() and not overwrite:
        raise FileExistsError(f"{output} exists; choose another name, or overwrite=True.")
    with tempfile.TemporaryDirectory(prefix=".lowrank-", dir=target.parent) as temporary:
        yield Path(temporary)
        if folder:
            target.mkdir(exist_ok=True)
        for file in Path(temporary).iterdir():
            file.replace(target / file.name if folder else target)
