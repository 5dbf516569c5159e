"""The blocks on the page about training that are for several processes, on two."""

import contextlib
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import ranks  # noqa: E402
from torch import distributed  # noqa: E402

worlds = ranks.worlds
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "training.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)


class Loss:
    def __init__(self, loss):
        self.loss = loss


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(16, 48)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(48, 48) for _ in range(3))
        self.head = torch.nn.Linear(48, 16)

    def forward(self, tokens):
        X = self.embedding(tokens)
        for layer in self.layers:
            X = X + layer(X).tanh()
        return Loss(torch.nn.functional.cross_entropy(self.head(X), tokens))


def _run_blocks(blocks, folder):
    numbers = torch.Generator().manual_seed(distributed.get_rank())
    loader = [torch.randint(16, (8,), generator=numbers) for _ in range(4)]
    space = {"model": Model(), "loader": loader}
    with contextlib.chdir(folder):
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), space)
    return [row.rank for row in space["optimizer"].report().rows]


def test_blocks_run(worlds, tmp_path):
    blocks = [block for block in BLOCKS if "torch.distributed" in block]
    assert len(blocks) == 2
    for found in worlds[2].run(_run_blocks, blocks, str(tmp_path)):
        assert found == [8] * 3 + [None] * 6
