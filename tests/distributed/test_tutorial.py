"""The tutorial about sharded matrices, as a reader runs it."""

import multiprocessing
import os
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "tutorials" / "sharded.md").read_text(encoding="utf-8")
SCRIPT = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
RUNS = re.findall(r"\$ torchrun (.*?) sharded\.py\n(.*?)```", PAGE, re.DOTALL)
# Processes that have what they need, in place of new interpreters that import it once more.
FORKED = ["--run-path", "--start-method", "fork"]


def torchrun(arguments, folder):
    """PyTorch's launcher, in this process, which is new."""
    from torch.distributed import run  # noqa: PLC0415

    os.chdir(folder)
    for name, number in (("printed.txt", 1), ("errors.txt", 2)):
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY), number)
    run.main([*FORKED, *arguments])


@pytest.mark.parametrize(("arguments", "expected"), RUNS, ids=["one process", "four processes"])
def test_it_prints_what_the_page_shows(tmp_path, arguments, expected):
    (tmp_path / "sharded.py").write_text(SCRIPT, encoding="utf-8")
    context = multiprocessing.get_context("forkserver")
    launcher = context.Process(target=torchrun, args=([*arguments.split(), "sharded.py"], tmp_path))
    launcher.start()
    launcher.join(120)
    assert launcher.exitcode == 0, (tmp_path / "errors.txt").read_text(encoding="utf-8")
    printed = (tmp_path / "printed.txt").read_text(encoding="utf-8")
    number = r"\d+\.\d+e-\d+"
    assert re.sub(number, "#", printed) == re.sub(number, "#", expected)
    found, shown = ([*map(float, re.findall(number, text))] for text in (printed, expected))
    assert found == pytest.approx(shown, rel=0.1)
