"""LoRA adapters from two checkpoints.

Needs torch and safetensors, and is imported explicitly: ``import lowrank.adapters``.
"""

import json
import re
from dataclasses import replace
from math import hypot
from os import PathLike
from typing import Any

import torch
from safetensors.torch import save_file

from lowrank import _tensors as tensors
from lowrank._tensors import Change
from lowrank.results import SVDResult

__all__ = ["Change", "extract_lora"]

# The embedding that serves as the head where a checkpoint has none.
TIED = "embed_tokens|wte|word_embeddings"
# Of names that PEFT looks for.
PREFIX = "base_model.model."


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
    skip: str = tensors.SKIP,
    device: Any = "cpu",
    rng: Any = 0,
    overwrite: bool = False,
    callback: tensors.Callback | None = None,
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
        Largest size of all factors in bytes. It is divided among all weights so that the sum of
        the squared errors is smallest. At least one of the three is required.
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
        Called as ``callback(change, left)`` after each tensor, with a
        :class:`lowrank.checkpoints.Change` and the number of tensors left. If it raises an
        exception, nothing is written. A `budget` may lower the ranks afterwards.

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
    not learned. So the tolerance is never below eps/4 of the norm of the weight.

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
    >>> import tempfile, torch, lowrank.adapters
    >>> from safetensors.torch import save_file
    >>> weight = torch.eye(64, 32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_file({"up.weight": weight}, f"{folder}/base.safetensors")
    ...     save_file({"up.weight": weight + 1}, f"{folder}/tuned.safetensors")
    ...     files = f"{folder}/tuned.safetensors", f"{folder}/base.safetensors", f"{folder}/lora"
    ...     (change,) = lowrank.adapters.extract_lora(*files, rtol=0.1)
    >>> change.rank, change.error_bound <= 0.1 * change.norm
    (1, True)
    """
    if rtol is rank is budget is None:
        raise ValueError("Give rtol, rank or budget, or several of them.")
    (new, _), (old, _) = tensors.opened(tuned, device), tensors.opened(base, device)
    if not new.keys() & old.keys():
        raise ValueError(f"No names in common: {next(iter(new))}, … and {next(iter(old))}, ….")
    found: dict[str, SVDResult] = {}
    changes: dict[str, Change] = {}
    rest: dict[str, Any] = {}
    with tensors.appearing(output, overwrite, folder=True) as folder:
        for left, name in tensors.counted_down([*(old | new)]):
            change, tensor, difference = _compared(name, new, old)
            is_weight = name.endswith(".weight") and len(change.shape) == 2
            if difference is None or change.norm == 0:
                pass
            elif is_weight and tensor.dtype in tensors.DTYPES and not re.search(skip, name):
                within = None if budget is None else budget // (4 * sum(change.shape))
                most = min((r for r in (rank, within) if r is not None), default=None)
                rounding = 0.25 * torch.finfo(tensor.dtype).eps * change.base_norm
                X = difference.mT if transposed else difference
                found[name] = tensors.svd_of(name, X, most, rtol, atol=rounding, rng=rng)
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
            raise ValueError("No matrix has changed by more than its rounding error.")
        if not any("head" in name for name in new):  # PEFT wants both, and ties them again
            tied = [name for name in rest if re.search(TIED, name)]
            if tied:
                rest["lm_head.weight"] = rest[tied[0]].clone()
        part, modules = _parts(found, ranks, rest)
        pattern = {tensors.layer_of(name): r for name, r in ranks.items()}
        config = {
            "peft_type": "LORA",
            "base_model_name_or_path": str(base),
            "target_modules": [*pattern],
            "modules_to_save": [*dict.fromkeys(modules)] or None,
            "ensure_weight_tying": "lm_head" in modules and "lm_head.weight" not in new,
            "bias": "none" if len(modules) == len(rest) else "lora_only",
            # So the scale, alpha over rank, is one.
            "r": max(ranks.values()),
            "lora_alpha": max(ranks.values()),
            "rank_pattern": pattern,
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
        U, S, Vh = (factor.to(torch.float32) for factor in found[name])
        root, key = S[:r].sqrt(), f"{PREFIX}{tensors.layer_of(name)}.lora_"
        part |= {f"{key}A.weight": root[:, None] * Vh[:r], f"{key}B.weight": U[:, :r] * root}
    modules = []
    for name, tensor in rest.items():
        module, _, kind = name.rpartition(".")
        if f"{module}.weight" in ranks:  # its bias
            part[f"{PREFIX}{module}.base_layer.{kind}"] = tensor
        else:
            part[PREFIX + name] = tensor
            modules.append(module)
    return {key: value.contiguous().cpu() for key, value in part.items()}, modules


def _compared(name: str, new: tensors.Tensors, old: tensors.Tensors) -> tuple[Change, Any, Any]:
    """A tensor, and its change where that is a number for each entry."""
    tensor = (new if name in new else old)[name][1].get_tensor(name)
    change = Change(name, tuple(tensor.shape), tensor.nbytes)
    if name not in new or name not in old:
        where = "TUNED" if name in new else "BASE"
        return replace(change, note=f"only in {where}"), tensor, None
    before = tensors.wide(old[name][1].get_tensor(name))
    if before.shape != tensor.shape:
        note = f"of shape {[*before.shape]} in BASE and {[*tensor.shape]} in TUNED"
        return replace(change, note=note), tensor, None
    difference = tensors.wide(tensor) - before
    norm, base_norm = (torch.linalg.norm(X).item() for X in (difference, before))
    return replace(change, norm=norm, base_norm=base_norm), tensor, difference


def _with_rank(change: Change, found: SVDResult, r: int, rtol: float | None) -> Change:
    """With the first `r` columns of the factors, and what is lost by that."""
    error = hypot(found.error_bound or 0.0, torch.linalg.norm(found.S[r:]).item())
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
