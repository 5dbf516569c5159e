"""The tutorial about sharded matrices, as a reader runs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "tutorials" / "sharded.md").read_text(encoding="utf-8")
SCRIPT = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
RUNS = re.findall(r"\$ torchrun (.*?) sharded\.py\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("arguments", "expected"), RUNS, ids=["one process", "four processes"])
def test_it_prints_what_the_page_shows(tmp_path, arguments, expected):
    (tmp_path / "sharded.py").write_text(SCRIPT, encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", *arguments.split(), "sharded.py"]
    ended = subprocess.run(
        launcher, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    number = r"\d+\.\d+e-\d+"
    assert re.sub(number, "#", ended.stdout) == re.sub(number, "#", expected)
    found, shown = ([*map(float, re.findall(number, text))] for text in (ended.stdout, expected))
    assert found == pytest.approx(shown, rel=0.1)
