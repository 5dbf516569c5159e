"""Checkpoints of models: weights as two factors, and LoRA adapters from two checkpoints.

Needs torch and safetensors, and is imported explicitly: ``import lowrank.checkpoints``.
"""

import json
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import hypot
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lowrank.results import ConvergenceWarning, SVDResult
from lowrank.svd import svd

__all__ = ["Change", "extract_lora", "factorize"]

SKIP = "embed|wte|wpe|lm_head"
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
# The embedding that serves as the head where a checkpoint has none.
TIED = "embed_tokens|wte|word_embeddings"
# Of names that PEFT looks for.
PREFIX = "base_model.model."


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
        Norm of the tensor before the change; for :func:`factorize` the same as `norm`.
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
# The file that holds each tensor: its path, and the open file.
Tensors = dict[str, tuple[Path, Any]]


def factorize(
    model: str | PathLike[str],
    output: str | PathLike[str],
    /,
    *,
    rtol: float | None = None,
    rank: int | None = None,
    skip: str = SKIP,
    device: Any = "cpu",
    rng: Any = 0,
    overwrite: bool = False,
    callback: Callback | None = None,
) -> list[Change]:
    """Write a checkpoint with two factors in place of each weight where that takes less memory.

    A weight ``name.weight`` of shape (m, n) becomes ``name.0.weight`` of shape (r, n) and
    ``name.1.weight`` of shape (m, r); their product is the weight, up to the error. A weight of a
    convolution, of shape (m, n, h, w), is flattened to (m, n·h·w) and becomes (r, n, h, w) and
    (m, r, 1, 1). A bias becomes ``name.1.bias``. So they are the state of two modules, one after
    the other. All other tensors are written as they are.

    Parameters
    ----------
    model : path
        A .safetensors file, an index of shards (.json), or a directory with one of these.
    output : path
        What to write: a file if `model` is one, else a directory with files of the same names and
        an index. It appears when it is complete.
    rtol : float, optional
        Largest error of a weight relative to its norm, in the Frobenius norm. A weight whose
        factors would then not take less memory is written as it is.
    rank : int, optional
        Rank of the factors; with `rtol`, the largest. At least one of the two is required.
    skip : str
        Regular expression for the names of tensors to leave as they are: by default, embeddings and
        heads.
    device : torch.device or str
        Where to compute.
    rng : int or numpy.random.Generator
        Source of the sketches. The same integer gives the same files.
    overwrite : bool
        Replace files that exist.
    callback : callable, optional
        Called as ``callback(change, left)`` after each tensor, with a :class:`Change` and the
        number of tensors left. If it raises an exception, nothing is written.

    Returns
    -------
    list of Change
        One for each tensor. The error bound is that of the written factors, in their dtype.

    Raises
    ------
    ValueError
        If neither `rtol` nor `rank` is given, or a weight contains NaN or Inf.
    FileNotFoundError, FileExistsError
        If there is no checkpoint at `model`, or something at `output`.

    Notes
    -----
    Computes in float32, and in float64 for weights of float64. Holds one file of the output in
    memory, one weight, and one and a half times as much to factorize it. Quantized weights, experts
    in one three-dimensional tensor and tensors of other dimensions are left as they are; a grouped
    convolution can't be told from an ordinary one, and its two factors are not two convolutions.
    Other files of a directory are not copied.

    Examples
    --------
    >>> import tempfile, torch, lowrank.checkpoints
    >>> from safetensors.torch import save_file
    >>> weight = torch.ones(64, 32) + torch.eye(64, 32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"up.weight": weight}, f"{folder}/model.safetensors")
    ...     files = f"{folder}/model.safetensors", f"{folder}/small.safetensors"
    ...     (change,) = lowrank.checkpoints.factorize(*files, rtol=0.2)
    >>> change.rank, change.written < change.nbytes
    (1, True)
    """
    if rtol is None and rank is None:
        raise ValueError("Give rtol, rank, or both.")
    tensors, index = _opened(model, device)
    biases = {f"{_layer(name)}.bias" for name in tensors} & tensors.keys()
    changes: list[Change] = []
    places: dict[str, str] = {}
    part: dict[str, Any] = {}
    names = [name for name in tensors if name not in biases]
    with _appearing(output, overwrite, folder=bool(index) or Path(model).is_dir()) as folder:
        for left, name in _counted_down(names):
            path, file = tensors[name]
            tensor, layer = file.get_tensor(name), _layer(name)
            pair, change = _factors(name, tensor, rtol, rank, skip, rng)
            new = {f"{layer}.{k}.weight": factor for k, factor in enumerate(pair)} or {name: tensor}
            if (bias := f"{layer}.bias") in biases:
                new[f"{layer}.1.bias" if pair else bias] = tensors[bias][1].get_tensor(bias)
            part |= {key: value.contiguous().cpu() for key, value in new.items()}
            places |= dict.fromkeys(new, path.name)
            changes.append(replace(change, written=sum(value.nbytes for value in new.values())))
            if not left or tensors[names[-left]][0] != path:  # the last of this file
                save_file(part, folder / path.name, file.metadata())
                part = {}
            if callback is not None:
                callback(changes[-1], left)
        if index:
            size = {"total_size": sum(change.written for change in changes)}
            text = json.dumps({"metadata": size, "weight_map": places}, indent=2)
            (folder / index).write_text(text, "utf-8")
    return changes


def _factors(
    name: str, tensor: Any, rtol: float | None, rank: int | None, skip: str, rng: Any
) -> tuple[tuple[Any, ...], Change]:
    """The factors for a weight, or none, and what to say of it."""
    change = Change(name, tuple(tensor.shape), tensor.nbytes)
    if tensor.ndim not in (2, 4) or tensor.dtype not in DTYPES or re.search(skip, name):
        return (), change
    matrix = _wide(tensor).flatten(1)
    (m, n), (_, _, *kernel) = matrix.shape, tensor.shape
    most = (m * n - 1) // (m + n)
    found = _svd(name, matrix, min(most, most if rank is None else rank), rtol, rng=rng)
    norm = torch.linalg.norm(matrix).item()
    change = replace(change, norm=norm, base_norm=norm)
    if found.rank == 0 or (found.converged is False and found.rank == most):
        return (), replace(change, note="its factors take more memory")
    left, right = (factor.to(tensor.dtype) for factor in found.factors)
    # The error of what is written, rounded to the dtype of the file.
    error = torch.linalg.norm(matrix - _wide(left) @ _wide(right)).item()
    pair = right.reshape(-1, *tensor.shape[1:]), left.reshape(m, -1, *(1 for _ in kernel))
    bound = max(error, found.error_bound or 0.0)
    met = None if rtol is None else bound <= rtol * norm
    return pair, replace(change, rank=found.rank, error_bound=bound, converged=met)


def extract_lora(
    tuned: str | PathLike[str],
    base: str | PathLike[str],
    output: str | PathLike[str],
    /,
    *,
    rtol: float | None = None,
    rank: int | None = None,
    budget: int | None = None,
    save_rest: bool = False,
    transposed: bool = False,
    skip: str = SKIP,
    device: Any = "cpu",
    rng: Any = 0,
    overwrite: bool = False,
    callback: Callback | None = None,
) -> list[Change]:
    """Write a LoRA adapter that turns the model `base` into `tuned`, up to a bounded error.

    The difference of each weight becomes two factors, ``lora_B @ lora_A``, of the smallest rank
    that meets the tolerance. The directory has the files ``adapter_model.safetensors`` and
    ``adapter_config.json`` of PEFT, with a rank for each weight.

    Parameters
    ----------
    tuned, base : path
        The checkpoints after and before: each a .safetensors file, an index of shards (.json), or a
        directory with one of these.
    output : path
        The directory to write. It appears when it is complete.
    rtol : float, optional
        Largest error of a weight relative to the norm of its change, in the Frobenius norm.
    rank : int, optional
        Largest rank of a weight; without the others, the rank of each.
    budget : int, optional
        Largest size of all factors in bytes. The singular values of all weights share it so that
        the sum of the squared errors is least. At least one of the three is required.
    save_rest : bool
        Also write changed tensors that have no factors, such as norms and embeddings, in full
        (``modules_to_save`` of PEFT, and the biases of adapted layers).
    transposed : bool
        Weights have the shape in×out, as in GPT-2 (``fan_in_fan_out`` of PEFT).
    skip : str
        Regular expression for the names of tensors without factors: by default, embeddings and
        heads.
    device : torch.device or str
        Where to compute.
    rng : int or numpy.random.Generator
        Source of the sketches. The same integer gives the same files.
    overwrite : bool
        Replace files that exist.
    callback : callable, optional
        Called as ``callback(change, left)`` after each tensor, with a :class:`Change` and the
        number of tensors left. If it raises an exception, nothing is written. A `budget` may lower
        the ranks afterwards.

    Returns
    -------
    list of Change
        One for each tensor that has changed, or that only one of the checkpoints has.

    Raises
    ------
    ValueError
        If none of `rtol`, `rank`, `budget` is given, the checkpoints have no names in common, no
        matrix has changed by more than rounding, or a change contains NaN or Inf.
    FileNotFoundError, FileExistsError
        If there is no checkpoint at `tuned` or `base`, or something at `output`.

    Notes
    -----
    A weight in bfloat16 has a rounding error of about 0.2 eps of its norm, of full rank, which was
    not learned. So no error below eps/4 of the norm of the weight is asked for.

    Computes in float32 (float64 for float64) and holds in memory a weight, its difference, one and
    a half times as much to factorize it, and all factors, which are written in float32. With a
    `budget` alone, a weight is first factorized up to the rank that would use all of it.

    The difference after full fine-tuning may have no low rank; `error_bound` shows what is lost.
    Convolutions, experts in one three-dimensional tensor, quantized weights and tensors of another
    shape get no factors.

    References
    ----------
    .. [1] E. J. Hu et al., "LoRA: Low-rank adaptation of large language models", 2021,
       arXiv:2106.09685.

    Examples
    --------
    >>> import tempfile, torch, lowrank.checkpoints
    >>> from safetensors.torch import save_file
    >>> weight = torch.eye(64, 32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"up.weight": weight}, f"{folder}/base.safetensors")
    ...     save_file({"up.weight": weight + 1}, f"{folder}/tuned.safetensors")
    ...     files = f"{folder}/tuned.safetensors", f"{folder}/base.safetensors", f"{folder}/lora"
    ...     (change,) = lowrank.checkpoints.extract_lora(*files, rtol=0.1)
    >>> change.rank, change.error_bound <= 0.1 * change.norm
    (1, True)
    """
    if rtol is rank is budget is None:
        raise ValueError("Give rtol, rank, budget, or several of them.")
    (new, _), (old, _) = _opened(tuned, device), _opened(base, device)
    if not new.keys() & old.keys():
        raise ValueError(f"No names in common: {next(iter(new))} … and {next(iter(old))} ….")
    found: dict[str, SVDResult] = {}
    changes: dict[str, Change] = {}
    rest: dict[str, Any] = {}
    with _appearing(output, overwrite, folder=True) as folder:
        for left, name in _counted_down([*(old | new)]):
            change, tensor, difference = _compared(name, new, old)
            is_weight = name.endswith(".weight") and len(change.shape) == 2
            if difference is None or change.norm == 0:
                pass
            elif is_weight and tensor.dtype in DTYPES and not re.search(skip, name):
                within = None if budget is None else budget // (4 * sum(change.shape))
                most = min((r for r in (rank, within) if r is not None), default=None)
                rounding = 0.25 * torch.finfo(tensor.dtype).eps * change.base_norm
                X = difference.mT if transposed else difference
                found[name] = _svd(name, X, most, rtol, atol=rounding, rng=rng)
                change = _with_rank(change, found[name], found[name].rank, rtol)
            elif save_rest:
                rest[name], change = tensor, replace(change, written=tensor.nbytes)
            else:
                change = replace(change, note="not a matrix, or skipped by name")
            if change.norm > 0 or change.note:
                changes[name] = change
            if callback is not None:
                callback(change, left)
        if budget is not None:
            kept = _allotted(found, budget).items()
            changes |= {name: _with_rank(changes[name], found[name], r, rtol) for name, r in kept}
        ranks = {name: r for name in found if (r := changes[name].rank)}
        if not ranks:
            raise ValueError("No matrix has changed by more than the rounding of its numbers.")
        if not any("head" in name for name in new):  # PEFT wants both, and ties them again
            tied = [tensor for name, tensor in rest.items() if re.search(TIED, name)]
            if tied:
                rest["lm_head.weight"] = tied[0].clone()
        part, modules = _parts(found, ranks, rest)
        config = {
            "peft_type": "LORA",
            "base_model_name_or_path": str(base),
            "target_modules": [_layer(name) for name in ranks],
            "modules_to_save": modules or None,
            "ensure_weight_tying": "lm_head" in modules and "lm_head.weight" not in new,
            "bias": "none" if len(modules) == len(rest) else "lora_only",
            # So the scale, alpha over rank, is one.
            "r": max(ranks.values()),
            "lora_alpha": max(ranks.values()),
            "rank_pattern": (pattern := {_layer(name): r for name, r in ranks.items()}),
            "alpha_pattern": pattern,
            "fan_in_fan_out": transposed,
        }
        save_file(part, folder / "adapter_model.safetensors", {"format": "pt"})
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), "utf-8")
    return [*changes.values()]


def _parts(
    found: dict[str, SVDResult], ranks: dict[str, int], rest: dict[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The tensors of an adapter, and the modules that it holds in full."""
    part: dict[str, Any] = {}
    for name, r in ranks.items():
        U, S, Vh = found[name]
        root, key = S[:r].sqrt(), f"{PREFIX}{_layer(name)}.lora_"
        part |= {f"{key}A.weight": root[:, None] * Vh[:r], f"{key}B.weight": U[:, :r] * root}
    part = {key: factor.to(torch.float32) for key, factor in part.items()}
    modules = []
    for name, tensor in rest.items():
        module, _, kind = name.rpartition(".")
        if f"{module}.weight" in ranks:  # its bias
            part[f"{PREFIX}{module}.base_layer.{kind}"] = tensor
        else:
            part[PREFIX + name] = tensor
            modules.append(module)
    return {key: value.contiguous().cpu() for key, value in part.items()}, modules


def _compared(name: str, new: Tensors, old: Tensors) -> tuple[Change, Any, Any]:
    """A tensor, and its change where that is a number for each entry."""
    tensor = (new if name in new else old)[name][1].get_tensor(name)
    change = Change(name, tuple(tensor.shape), tensor.nbytes)
    if name not in new or name not in old:
        where = "TUNED" if name in new else "BASE"
        return replace(change, note=f"only in {where}"), tensor, None
    before = old[name][1].get_tensor(name)
    if before.shape != tensor.shape:
        note = f"of shape {[*before.shape]} in BASE and {[*tensor.shape]} in TUNED"
        return replace(change, note=note), tensor, None
    difference = _wide(tensor) - _wide(before)
    norm, base_norm = (torch.linalg.norm(X).item() for X in (difference, _wide(before)))
    return replace(change, norm=norm, base_norm=base_norm), tensor, difference


def _with_rank(change: Change, found: SVDResult, r: int, rtol: float | None) -> Change:
    """With the first `r` columns of the factors, and what is lost by that."""
    lost = torch.linalg.norm(found.S[r:]).item()
    error = hypot(found.error_bound or 0.0, lost)
    met = None if rtol is None else error <= (found.tolerance or 0.0)
    written = 4 * r * sum(change.shape)
    return replace(change, rank=r, written=written, error_bound=error, converged=met)


def _allotted(found: dict[str, SVDResult], budget: int) -> dict[str, int]:
    """Ranks that make the sum of the squared errors least: the largest σ² per byte first."""
    gains = [(float(s) ** 2 / sum(svd.shape), name) for name, svd in found.items() for s in svd.S]
    ranks = dict.fromkeys(found, 0)
    for _, name in sorted(gains, reverse=True):
        cost = 4 * sum(found[name].shape)
        if cost <= budget:
            budget -= cost
            ranks[name] += 1
    return ranks


def _svd(name: str, X: Any, rank: int | None, rtol: float | None, **options: Any) -> SVDResult:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a Change has the error
            return svd(X, rank, rtol=rtol, **options)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


# -- files -----------------------------------------------------------------------------------------


def _counted_down(names: list[str]) -> Iterator[tuple[int, str]]:
    """Each name, and how many are left after it."""
    return zip(reversed(range(len(names))), names, strict=True)


def _wide(X: Any) -> Any:
    return X.to(torch.float64 if X.dtype == torch.float64 else torch.float32)


def _layer(name: str) -> str:
    return name.removesuffix(".weight")


def _opened(model: str | PathLike[str], device: Any) -> tuple[Tensors, str]:
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
    opened: list[tuple[Path, Any]] = [
        (file, safe_open(file, "pt", device=str(device))) for file in files
    ]
    return {name: (path, file) for path, file in opened for name in file.keys()}, index  # noqa: SIM118


@contextmanager
def _appearing(output: str | PathLike[str], overwrite: bool, *, folder: bool) -> Iterator[Path]:
    """A temporary directory whose files become `output` when all of them are complete."""
    target = Path(output)
    if target.exists() and not overwrite:
        raise FileExistsError(f"{output} exists; choose another name, or overwrite=True.")
    with tempfile.TemporaryDirectory(prefix=".lowrank-", dir=target.parent) as temporary:
        yield Path(temporary)
        if folder:
            target.mkdir(exist_ok=True)
        for file in Path(temporary).iterdir():
            file.replace(target / file.name if folder else target)
