"""Every code block of the README and every example of a docstring does what it says."""

import doctest
import importlib
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lowrank

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PYTHON = [body for language, body in BLOCKS if language == "python"]
SHELL = [body for language, body in BLOCKS if language == "sh"]
CONSOLE = [body for language, body in BLOCKS if language == "console"]
TEXT = [body for language, body in BLOCKS if language == "text"]


def test_blocks_are_known():
    languages = [language for language, _ in BLOCKS]
    assert languages == ["python", "text", "sh", "sh", "python", "text", "console"]


def numbers(text):
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?(?:e[-+]\d+)?", text)]


def test_first_block_prints_what_the_readme_shows(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(PYTHON[0], "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert re.sub(r"[\d.e+-]+", "#", printed) == re.sub(r"[\d.e+-]+", "#", TEXT[0])
    # the last digit is the machine's
    assert numbers(printed) == pytest.approx(numbers(TEXT[0]), rel=2e-3)
    assert np.allclose(
        lowrank.load("A_factors.npz").reconstruct(), (names["U"] * names["S"]) @ names["Vh"]
    )


def test_first_block_takes_tensors_too(capsys, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    code = PYTHON[0].replace("np.vander", "torch.vander").replace("np.ones", "torch.ones")
    code = code.replace(
        "np.linspace(0, 1, 2000)", "torch.linspace(0, 1, 2000, dtype=torch.float64)"
    )
    names = {"torch": torch}
    exec(compile(code.replace("(1000)", "(1000, dtype=torch.float64)"), "README.md", "exec"), names)
    assert isinstance(names["y"], torch.Tensor)
    said = TEXT[0].replace("float64", "torch.float64")
    assert numbers(capsys.readouterr().out) == pytest.approx(numbers(said), rel=2e-2)


def test_optimizer_block_prints_what_the_readme_shows(capsys):
    pytest.importorskip("torch")
    exec(compile(PYTHON[1], "README.md", "exec"), {})
    assert capsys.readouterr().out == TEXT[1]


def test_python_blocks_are_ten_lines():
    for block in PYTHON:
        assert len([line for line in block.splitlines() if line.strip()]) <= 10


def test_shell_blocks_are_single_lines_that_this_checkout_can_run():
    """What they install and start exists; .ci/run runs the second as it is written."""
    for block in SHELL:
        (line,) = block.splitlines()
        words = shlex.split(line)
        assert words[:4] == ["python", "-m", "pip", "install"]
        assert (ROOT / words[words.index("-c") + 1]).is_file()
    assert SHELL[0].rstrip().endswith("&& python -m lowrank")
    assert SHELL[1].rstrip().endswith("&& python -m pytest -n auto --dist worksteal")


def test_console_block_shows_what_the_commands_print(tmp_path):
    """Up to the time in the last column."""
    steps = re.split(r"^\$ ", CONSOLE[0], flags=re.MULTILINE)[1:]
    for step in steps:
        command, _, shown = step.partition("\n")
        program, *words = shlex.split(command)
        start = {"python": [], "lowrank": ["-m", "lowrank"]}[program]
        done = subprocess.run(
            [sys.executable, *start, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            cwd=tmp_path,
            env=os.environ | {"PYTHONIOENCODING": "utf-8"},
            encoding="utf-8",
        )
        printed, expected = (
            re.sub(r" *[\d.]+ s$", "", t, flags=re.M) for t in (done.stdout, shown)
        )
        assert re.sub(r"[\d.e+-]+", "#", printed) == re.sub(r"[\d.e+-]+", "#", expected)
        assert numbers(printed) == pytest.approx(numbers(expected), rel=2e-2)
    assert (tmp_path / "factors.npz").is_file()


@pytest.mark.parametrize(
    "name", sorted(m.name for m in pkgutil.walk_packages(lowrank.__path__, "lowrank."))
)
def test_docstring_examples(name):
    module = importlib.import_module(name)
    outcome = doctest.testmod(module)
    assert outcome.failed == 0


def test_public_functions_have_examples():
    finder = doctest.DocTestFinder()
    for name in (
        "qr",
        "householder_qr",
        "range_finder",
        "residual_norm",
        "qb",
        "svd",
        "eigh",
        "nystrom",
        "interpolative",
        "cur",
        "RowBlocks",
        "SketchedMatrix",
    ):
        example = min(finder.find(getattr(lowrank, name), name), key=lambda found: found.name)
        assert example.name == name
        assert example.examples


PEERS = (ROOT / "docs" / "how-to" / "peers.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.split("|")[1:-1]]
    for line in PEERS.splitlines()
    if line.startswith("| ") and not line.startswith("| feature ")
]


@pytest.mark.parametrize(("feature", "here", "test"), ROWS, ids=range(len(ROWS)))
def test_every_feature_of_a_peer_has_a_test_or_a_reason(feature, here, test):
    """Every "yes" names a test that is there; every "no" gives its reason."""
    if here.startswith("no: "):
        assert len(here) > 20
        assert not test
        return
    assert here.startswith("yes, ")
    file, name = test.replace("` `", "").strip("`").split("::")
    assert f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def test_every_source_is_in_the_bibliography():
    """Each DOI and arXiv number of the code and of the pages."""
    listed = (ROOT / "docs" / "references.bib").read_text(encoding="utf-8")
    files = [*ROOT.glob("src/**/*.py"), *ROOT.glob("docs/[a-z]*/*.md"), *ROOT.glob("docs/*.md")]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    found = re.findall(r"doi:(10\.\d+/[A-Za-z0-9./()-]*[A-Za-z0-9])", text)
    found += re.findall(r"arXiv[: ](\d{4}\.\d{4,5})", text)
    # the later paper of the same has a DOI
    missing = {source for source in found if source not in listed} - {"1902.08651"}
    assert not missing
    assert len(set(found)) > 30


def test_whose_algorithm_it_is_is_said():
    """The talk and the manuscript are named wherever a reader may begin."""
    texts = [README, (ROOT / "CITATION.cff").read_text(encoding="utf-8")]
    functions = lowrank.range_finder, lowrank.RangeFinder, lowrank.householder_qr
    texts += [function.__doc__ for function in functions]
    for text in texts:
        words = " ".join(text.replace("*", "").split()).lower()
        for named in (
            "penke",
            "herten",
            "efficient computation of low-rank representations to reduce memory",
            "doi:10.34734/fzj-2024-06883",
            "range finder based on an implicit householder qr decomposition",
        ):
            assert named in words.replace("doi: ", "doi:")


def test_asv_measures_the_tested_versions():
    tested = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    (needs,) = re.findall(r'"req": {(.*?)}', (ROOT / "asv.conf.json").read_text("utf-8"), re.DOTALL)
    pinned = re.findall(r'"([\w-]+)": \["([\d.]+)"\]', needs)
    assert pinned
    assert {f"{name}=={version}" for name, version in pinned} <= set(tested)
