"""Every block of Python on the page about training does what it says, on a tiny model."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from tiny_models import examples, llama, no_state_of_accelerate_is_left, sentences  # noqa: E402, F401

transformers = pytest.importorskip("transformers")

from lowrank.optim import LowRank, LowRankMomentum, LowRankMuon, select  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "training.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
# Those for several processes are run by the tests of these.
BLOCKS = [block for block in BLOCKS if "torch.distributed" not in block]


class Batches(torch.nn.Module):
    """A model whose forward takes a batch of tokens, which are their own labels."""

    def __init__(self):
        super().__init__()
        self.inner = llama()

    def forward(self, input_ids, labels=None):
        return self.inner(input_ids=input_ids, labels=input_ids if labels is None else labels)


def test_the_page_has_blocks():
    assert len(BLOCKS) == 8


@pytest.mark.parametrize("number", range(len(BLOCKS)))
@pytest.mark.filterwarnings("ignore:no parameter is compressed")  # rank 128, of 32
def test_blocks_run(tmp_path, number):
    model = Batches()
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, use_cpu=True, report_to=[], disable_tqdm=True,
        save_strategy="no", dataloader_pin_memory=False, per_device_train_batch_size=2,
    )  # fmt: skip
    optimizer = LowRank(select(model, rank=4), torch.optim.AdamW, lr=1e-2)
    group = {"rank": 4, "update_proj_gap": 2, "scale": 0.25, "proj_type": "std"}
    space = {
        "torch": torch, "LowRank": LowRank, "select": select, "Trainer": transformers.Trainer,
        "model": model, "args": args, "data": examples(8), "optimizer": optimizer,
        "loader": list(sentences(16).split(2)),
        "scheduler": SimpleNamespace(step=lambda: None),
        "param_groups": [{"params": list(model.parameters()), **group}],
    }  # fmt: skip
    start = [p.detach().clone() for p in model.parameters()]
    exec(compile(BLOCKS[number], str(PAGE), "exec"), space)
    if "trainer" in space:
        space["trainer"].train()
    elif "backward" not in BLOCKS[number]:
        model(space["loader"][0]).loss.backward()
        space["optimizer"].step()
    assert not any(torch.equal(p, w) for p, w in zip(model.parameters(), start, strict=True))
    assert isinstance(space["optimizer"], LowRank | LowRankMomentum | LowRankMuon)
