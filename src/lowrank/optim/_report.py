"""What is compressed, and how many bytes that saves."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Row:
    """A parameter: its rank and the bytes of its state.

    Attributes
    ----------
    name : str
    shape : tuple of int
    rank : int or None
        None where it is not compressed.
    bytes, uncompressed_bytes : int
        Of its state, and of the state that it would have.
    """

    name: str
    shape: tuple[int, ...]
    rank: int | None
    bytes: int
    uncompressed_bytes: int


@dataclass(frozen=True)
class Report:
    """A table of parameters, which prints as one.

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
    """Bytes of the storages that these tensors keep alive, each counted once."""
    storages = {}
    for value in values:
        for tensor in _plain(value):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr(), tensor.device] = storage.nbytes()
    return sum(storages.values())


def _plain(value: Any) -> list[torch.Tensor]:
    """The tensors that a tensor subclass is made of."""
    if not isinstance(value, torch.Tensor):
        return []
    if not hasattr(value, "__tensor_flatten__"):
        return [value]
    names, _ = value.__tensor_flatten__()
    return [tensor for name in names for tensor in _plain(getattr(value, name))]
