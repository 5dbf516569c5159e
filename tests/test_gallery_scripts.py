"""Every script of docs/gallery runs, what it asserts holds, and its pictures have a text."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "docs" / "gallery"
SCRIPTS = sorted(FOLDER.glob("plot_*.py"))

# What a reader's Python does, and then a look at the pictures that are open.
RUN = """
import runpy, sys
runpy.run_path(sys.argv[1], run_name="__main__")
import matplotlib.pyplot as plt
figures = [plt.figure(number) for number in plt.get_fignums()]
assert figures, "no picture"
for figure in figures:
    figure.canvas.draw()
    assert len(figure.get_label()) > 80, "a picture without alternative text"
    for axes in figure.axes:
        names = (axes.get_title(), axes.get_xlabel(), axes.get_ylabel())
        assert any(names) or not axes.get_xticks().size, "axes without a name"
"""


def needs(script):
    """The packages that it imports, other than the library's own."""
    text = script.read_text(encoding="utf-8")
    imported = re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)
    return sorted({"matplotlib", *imported} - set(sys.stdlib_module_names) - {"lowrank"})


def test_there_are_scripts():
    assert len(SCRIPTS) >= 8


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_script_runs_and_its_claims_hold(script, tmp_path):
    for package in needs(script):
        pytest.importorskip(package)
    only_canvas = "ignore:FigureCanvasAgg is non-interactive"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-W", only_canvas, "-c", RUN, str(script)],
        check=False,
        capture_output=True,
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": "Agg", "PYTHONIOENCODING": "utf-8"},
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout
    assert not any(tmp_path.iterdir()), "a script left files behind"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_script_checks_what_it_says(script):
    """Asserts are not for the reader alone; without them the test above would show little."""
    text = script.read_text(encoding="utf-8")
    assert len(re.findall(r"^\s*assert ", text, re.MULTILINE)) >= 2
    assert text.rstrip().endswith("plt.show()")
