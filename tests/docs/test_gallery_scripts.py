"""Every script of docs/gallery runs, what it asserts holds, and its pictures have a text."""

import multiprocessing
import os
import re
import runpy
import sys
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "gallery"
SCRIPTS = sorted(FOLDER.glob("plot_*.py"))


def as_a_reader(script, folder, said):
    """Run a script in this process, which is new, and look at the pictures that are open then."""
    import matplotlib.pyplot as plt  # noqa: PLC0415

    os.chdir(folder)
    plt.switch_backend("Agg")
    warnings.simplefilter("error", UserWarning)
    warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
    with said.open("w", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        try:
            runpy.run_path(str(script), run_name="__main__")
            figures = [plt.figure(number) for number in plt.get_fignums()]
            assert figures, "no picture"
            for figure in figures:
                figure.canvas.draw()
                assert len(figure.get_label()) > 80, "a picture without alternative text"
                for axes in figure.axes:
                    names = (axes.get_title(), axes.get_xlabel(), axes.get_ylabel())
                    assert any(names) or not axes.get_xticks().size, "axes without a name"
        except BaseException:
            traceback.print_exc()
            raise SystemExit(1) from None


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
    said, folder = tmp_path / "said.txt", tmp_path / "folder"
    folder.mkdir()
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=as_a_reader, args=(script, folder, said))
    process.start()
    process.join()
    assert process.exitcode == 0, said.read_text(encoding="utf-8")
    assert said.read_text(encoding="utf-8")
    assert not any(folder.iterdir()), "a script left files behind"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_script_checks_what_it_says(script):
    """Asserts are not for the reader alone; without them the test above would show little."""
    text = script.read_text(encoding="utf-8")
    assert len(re.findall(r"^\s*assert ", text, re.MULTILINE)) >= 2
    assert text.rstrip().endswith("plt.show()")
