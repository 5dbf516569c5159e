"""Which parameters are compressed, and how many bytes that saves."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from lowrank.optim._options import DEFAULTS, parse, weight_of


@dataclass(frozen=True)
class Row:
    """A parameter: its rank and the bytes of its state.

    Attributes
    ----------
    name : str
    shape : tuple of int
    rank : int or None
        None if it is not compressed.
    bytes, uncompressed_bytes : int
        Bytes of its state, and of its state without compression.
    """

    name: str
    shape: tuple[int, ...]
    rank: int | None
    bytes: int
    uncompressed_bytes: int


@dataclass(frozen=True)
class Report:
    """A table of parameters; ``print`` shows it as a table.

    Attributes
    ----------
    rows : tuple of Row
        One for each parameter.
    bytes, uncompressed_bytes : int
        Sums over the rows.
    """

    rows: tuple[Row, ...]

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.rows)

    @property
    def uncompressed_bytes(self) -> int:
        return sum(row.uncompressed_bytes for row in self.rows)

    def __str__(self) -> str:
        cells = [("parameter", "shape", "rank", "state", "uncompressed")]
        for row in self.rows:
            shape, rank = "×".join(map(str, row.shape)), "" if row.rank is None else str(row.rank)
            cells.append((row.name, shape, rank, f"{row.bytes:,}", f"{row.uncompressed_bytes:,}"))
        cells.append(("total, bytes", "", "", f"{self.bytes:,}", f"{self.uncompressed_bytes:,}"))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        form = "  ".join(f"{{:{'<' if i < 2 else '>'}{width}}}" for i, width in enumerate(widths))
        return "\n".join(form.format(*line).rstrip() for line in cells)


def storage_bytes(values: Iterable[Any]) -> int:
    """Bytes of the storages of these tensors, each counted once."""
    tensors = [tensor for value in values for tensor in _plain(value)]
    storages = [(tensor.untyped_storage(), tensor.device) for tensor in tensors]
    return sum({(X.data_ptr(), device): X.nbytes() for X, device in storages}.values())


def _plain(value: Any) -> list[torch.Tensor]:
    """The plain tensors inside a tensor subclass."""
    if not isinstance(value, torch.Tensor):
        return []
    if not hasattr(value, "__tensor_flatten__"):
        return [value]
    names, _ = value.__tensor_flatten__()
    return [tensor for name in names for tensor in _plain(getattr(value, name))]


Patterns = str | Iterable[str] | Callable[[str, torch.nn.Parameter], bool] | None
HEADS = ("lm_head", "head", "classifier", "score")
# Names of the modules that hold the factors of LoRA: lora_A, lora_B, lora_embedding_A, …
FACTORS = "lora_"
# Modules whose weights are matrices of linear maps. Conv1D is the linear layer of GPT-2.
LINEAR = (torch.nn.Linear, torch.nn.Bilinear, torch.nn.modules.conv._ConvNd)
LINEAR_NAMES = ("Conv1D",)


class Groups(list[dict[str, Any]]):
    """A list of parameter groups, with a method `report`."""

    def report(self) -> Report:
        """Every parameter, its rank, and the bytes of its state in :class:`LowRank` with Adam."""
        rows: list[Row] = []
        for group in self:
            options = {**DEFAULTS, **parse(group)}
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                weight, rank = weight_of(options, parameter, len(rows)), None
                whole = here = 2 * parameter.numel() * parameter.element_size()
                if weight is not None:
                    rank, here = weight.rank, weight.adam_bytes(weight.rank)
                    whole = 2 * parameter.numel() * weight.dtype.itemsize
                rows.append(Row(name, tuple(parameter.shape), rank, here, whole))
        return Report(tuple(rows))


def select(
    model: torch.nn.Module,
    *,
    rank: float | None = 128,
    include: Patterns = None,
    exclude: Patterns = None,
    **options: Any,
) -> Groups:
    """Parameter groups of a model for a low-rank optimizer: compressed and not compressed.

    Compressed are the weights of linear layers and convolutions, and the projections of attention
    layers, if that saves memory. Not compressed are embeddings, heads (what
    ``get_output_embeddings()`` returns, and modules named lm_head, head, classifier or score),
    norms, biases, the factors of LoRA (in modules named ``lora_…``), and parameters of all other
    modules. Parameters without `requires_grad` are left out; shared parameters are listed once.

    Parameters
    ----------
    model : torch.nn.Module
    rank : int or float, optional
        As for :class:`LowRank`.
    include, exclude : str, list of str, or callable, optional
        Regular expressions that are searched in the name of a parameter, or a function of the name
        and the parameter. `include` adds any tensor with at least two dimensions; `exclude` has
        precedence.
    **options
        Other options of :class:`LowRank` for the compressed group.

    Returns
    -------
    Groups
        A list of at most two groups, with a method `report`.

    Examples
    --------
    >>> import torch
    >>> from lowrank.optim import select
    >>> model = torch.nn.Sequential(torch.nn.Embedding(100, 64), torch.nn.Linear(64, 256))
    >>> [(group["rank"], group["param_names"]) for group in select(model, rank=8)]
    [(8, ['1.weight']), (None, ['0.weight', '1.bias'])]
    """
    compression = parse({**options, "rank": rank})
    kinds: Any = (compression, {"rank": None, "energy": None})
    chosen, others = ({"params": [], "param_names": [], **options} for options in kinds)
    usual = _linear_weights(model)
    for index, (name, parameter) in enumerate(model.named_parameters()):
        if not parameter.requires_grad:
            continue
        wanted = parameter in usual or _matches(include, name, parameter)
        wanted = wanted and not _matches(exclude, name, parameter)
        pays = weight_of({**DEFAULTS, **compression}, parameter, index) is not None
        group = chosen if wanted and pays else others
        group["params"].append(parameter)
        group["param_names"].append(name)
    return Groups(group for group in (chosen, others) if group["params"])


def _linear_weights(model: torch.nn.Module) -> set[torch.nn.Parameter]:
    """Weights of linear maps, without heads, embeddings, and LoRA's low-rank factors."""
    found, heads = set[torch.nn.Parameter](), set[torch.nn.Parameter]()
    output = getattr(model, "get_output_embeddings", lambda: None)()
    for name, module in model.named_modules():
        if any(part.startswith(FACTORS) for part in name.split(".")):
            continue
        is_head = module is output or name.rpartition(".")[2] in HEADS
        if is_head or isinstance(module, torch.nn.Embedding | torch.nn.EmbeddingBag):
            heads |= set(module.parameters())
        elif isinstance(module, (*LINEAR, torch.nn.MultiheadAttention)) or any(
            kind.__name__ in LINEAR_NAMES for kind in type(module).__mro__
        ):
            own = module.named_parameters(recurse=False)
            found.update(p for key, p in own if "weight" in key and p.ndim >= 2)
    return found - heads


def _matches(patterns: Patterns, name: str, parameter: torch.nn.Parameter) -> bool:
    if callable(patterns):
        return bool(patterns(name, parameter))
    patterns = [patterns] if isinstance(patterns, str) else patterns or ()
    return parameter.ndim >= 2 and any(re.search(pattern, name) for pattern in patterns)
