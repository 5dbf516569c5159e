"""The first tutorial, line by line, as a newcomer types it."""

import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import lowrank

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "first.md"
BLOCKS = re.findall(
    r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
)
NUMBER = r"\d+\.\d+"


def numbers(text):
    return [float(number) for number in re.findall(NUMBER, text)]


def test_every_block(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names, printed = {}, ""
    for language, body in BLOCKS:
        if language == "python":
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                exec(compile(body, PAGE.name, "exec"), names)
            if "noise" in body:
                (warning,) = told
                assert warning.category is lowrank.ConvergenceWarning
                start = "the tolerance 4.01 (absolute) was not certified: "
                assert str(warning.message).startswith(start)
            else:
                assert not told
            printed = capsys.readouterr().out
        elif language == "text":
            assert re.sub(NUMBER, "#", printed) == re.sub(NUMBER, "#", body)
            assert numbers(printed) == pytest.approx(numbers(body), rel=2e-3)
        elif language == "console":
            command = shlex.split(body.splitlines()[0].removeprefix("$ lowrank "))
            ended = subprocess.run(
                [sys.executable, "-m", "lowrank", *command],
                capture_output=True,
                text=True,
                check=True,
            )
            shown, now = (re.sub(NUMBER + " s", "", text) for text in (body, ended.stdout))
            assert re.search(r"0\.01 +8 .*\n +1e-06 +20 ", now)
            assert numbers(now) == pytest.approx(numbers(shown), rel=1e-2)
        else:
            assert language == "sh"
    found = names["found"]
    assert not found.converged
    assert found.error_bound > 0.8 * np.linalg.norm(names["noise"])

    (command,) = re.findall(r"`python (.*--output .*?)`", PAGE.read_text(encoding="utf-8"))
    subprocess.run([sys.executable, *shlex.split(command)], check=True)
    assert lowrank.load("A_factors.npz").converged
    assert np.array_equal(names["again"].reconstruct(), found.reconstruct())


def test_what_the_page_says_of_one_s_own_matrix():
    A = np.vander(np.linspace(0, 1, 400))
    found = lowrank.svd(A, rtol=0.1, center=True, rng=0)
    centered = A - A.mean(axis=0)
    kept = np.sum(found.S**2) / np.linalg.norm(centered) ** 2
    assert kept >= 0.99
    x = np.ones(400)
    assert np.linalg.norm(A @ x - found @ x) <= found.error_bound * np.linalg.norm(x)
    assert np.sum(found.explained_variance_ratio) == pytest.approx(kept)
    assert np.allclose(found.transform(A), centered @ found.Vh.T)
