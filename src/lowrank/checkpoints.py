"""Checkpoints of models with two factors in place of each weight.

Needs torch and safetensors, and is imported explicitly: ``import lowrank.checkpoints``.
"""

import json
import re
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lowrank import _tensors as tensors
from lowrank._tensors import Change

__all__ = ["Change", "factorize"]


def factorize(
    model: str | PathLike[str],
    output: str | PathLike[str],
    /,
    *,
    rtol: float | None = None,
    rank: int | None = None,
    skip: str = tensors.SKIP,
    device: Any = "cpu",
    rng: Any = 0,
    overwrite: bool = False,
    callback: tensors.Callback | None = None,
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
        Called as ``callback(change, left)`` after each tensor, with a
        :class:`lowrank.checkpoints.Change` and the number of tensors left. If it raises an
        exception, nothing is written.

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
    held, index = tensors.opened(model, device)
    biases = {f"{tensors.layer_of(name)}.bias" for name in held} & held.keys()
    changes: list[Change] = []
    places: dict[str, str] = {}
    part: dict[str, Any] = {}
    names = [name for name in held if name not in biases]
    with tensors.appearing(output, overwrite, folder=bool(index) or Path(model).is_dir()) as folder:
        for left, name in tensors.counted_down(names):
            path, file = held[name]
            tensor, layer = file.get_tensor(name), tensors.layer_of(name)
            pair, change = _factors(name, tensor, rtol, rank, skip, rng)
            new = {f"{layer}.{k}.weight": factor for k, factor in enumerate(pair)} or {name: tensor}
            if (bias := f"{layer}.bias") in biases:
                new[f"{layer}.1.bias" if pair else bias] = held[bias][1].get_tensor(bias)
            part |= {key: value.contiguous().cpu() for key, value in new.items()}
            places |= dict.fromkeys(new, path.name)
            changes.append(replace(change, written=sum(value.nbytes for value in new.values())))
            if not left or held[names[-left]][0] != path:  # the last of this file
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
    if tensor.ndim not in (2, 4) or tensor.dtype not in tensors.DTYPES or re.search(skip, name):
        return (), change
    matrix = tensors.wide(tensor).flatten(1)
    (m, n), (_, _, *kernel) = matrix.shape, tensor.shape
    most = (m * n - 1) // (m + n)
    found = tensors.svd_of(name, matrix, min(most, most if rank is None else rank), rtol, rng=rng)
    norm = torch.linalg.norm(matrix).item()
    change = replace(change, norm=norm, base_norm=norm)
    if found.rank == 0 or (found.converged is False and found.rank == most):
        return (), replace(change, note="its factors take more memory")
    left, right = (factor.to(tensor.dtype) for factor in found.factors)
    # The error of what is written, rounded to the dtype of the file.
    error = torch.linalg.norm(matrix - tensors.wide(left) @ tensors.wide(right)).item()
    pair = right.reshape(-1, *tensor.shape[1:]), left.reshape(m, -1, *(1 for _ in kernel))
    bound = max(error, found.error_bound or 0.0)
    met = None if rtol is None else bound <= rtol * norm
    return pair, replace(change, rank=found.rank, error_bound=bound, converged=met)
