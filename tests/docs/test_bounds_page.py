"""docs/explanation/bounds.md: its table is what the script computes, and its text what it shows."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "explanation"
PAGE = (FOLDER / "bounds.md").read_text(encoding="utf-8")
TABLE = (FOLDER / "bounds_table.md").read_text(encoding="utf-8")
KINDS = ("fro", "spectral")
# Columns of the tables: the spectra slow, fast and s_shaped, each with q = 0 and q = 1.
Q0, Q1 = slice(0, 6, 2), slice(1, 6, 2)


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield importlib.import_module("benchmarks.studies.bounds")


@pytest.fixture(scope="module")
def figures(script):
    return script.figures()


def numbers(text):
    return [float(number) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e[-+]?\d+)?", text)]


def over(rows, name, other, columns):
    """Smallest and largest ratio of two rows."""
    ratios = [a / b for a, b in zip(rows[name][columns], rows[other][columns], strict=True)]
    return pytest.approx([min(ratios), max(ratios)], rel=0.05)


def test_table(script, figures):
    made = script.page(figures)
    assert re.sub(r"[\d.]+", "#", made) == re.sub(r"[\d.]+", "#", TABLE)
    assert numbers(made) == pytest.approx(numbers(TABLE), rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_no_bound_is_below_what_it_bounds(figures, kind):
    rows = figures[kind]
    for name, values in rows.items():
        assert all(value is None or value >= 1 for value in values), name
    mean, worst = rows["true error, root mean square"], rows["true error, largest"]
    for name in ("`root_mean_square`", "`expected`, k = 20", "`expected`, best k"):
        assert all(b is None or b >= a for a, b in zip(mean, rows[name], strict=True))
    for name in ("`deviation`, k = 20, 1e-9", "`likely`, 1e-9", "norm of A"):
        assert all(b >= a for a, b in zip(worst, rows[name], strict=True))


def test_what_the_text_says_of_the_truth(figures):
    for rows in figures.values():
        median, worst = rows["true error, median"], rows["true error, largest"]
        assert all(2 < value < 4 for value in median[Q0])
        assert all(1.05 < value < 1.3 for value in median[Q1])
        *ratios, last = (b / a for a, b in zip(median, worst, strict=True))
        assert max(ratios) < 1.95
        assert 2.7 < last < 3.05


def test_what_the_text_says_of_the_mean(figures):
    fro, spectral = (figures[kind] for kind in KINDS)
    true, mean = "true error, root mean square", "`root_mean_square`"
    assert over(fro, mean, true, slice(0, 4, 2)) == [1.5, 1.8]
    assert over(fro, mean, true, slice(4, 5)) == [4.8, 4.8]
    assert over(fro, mean, "norm of A", slice(4, 5)) == [0.92, 0.92]
    for name in ("`expected`, k = 20", "`expected`, best k"):
        falls = [1 - b / a for a, b in zip(fro[name][Q0], fro[name][Q1], strict=True)]
        assert all(0 <= fall < 0.285 for fall in falls)
    medians = fro["true error, median"]
    assert all(0.33 < b / a < 0.51 for a, b in zip(medians[Q0], medians[Q1], strict=True))
    assert over(spectral, mean, true, Q0) == [3.3, 4.6]
    assert over(spectral, "`expected`, best k", true, Q1) == [2.3, 3.7]


def test_what_the_text_says_of_failures(figures):
    fro, spectral = (figures[kind] for kind in KINDS)
    true, likely = "true error, root mean square", "`likely`, 1e-9"
    for rows in (fro, spectral):
        assert over(rows, likely, "norm of A", slice(2, 5, 2)) == [1, 1]
        split = rows["`deviation`, k = 20, 1e-9"]
        assert all(split[column] > rows["norm of A"][column] for column in (2, 4))
    assert over(fro, likely, true, slice(0, 1)) == [24, 24]
    assert over(spectral, likely, true, slice(0, 1)) == [48, 48]
    assert over(spectral, "`deviation_simple`, k = 20", true, slice(0, 1)) == [25, 25]
    worst = max(
        bound / truth
        for rows in (fro, spectral)
        for name, values in rows.items()
        for bound, truth in zip(values, rows[true], strict=True)
        if name.startswith("`") and bound is not None
    )
    assert worst == pytest.approx(340, rel=0.05)


def test_what_the_text_says_of_one_draw(figures):
    for rows in figures.values():
        for name, least, most in (
            ("certificate (`residual_norm`), median", 1.9, 2.3),
            ("`given_sketch`, best k, median", 1.05, 2.3),
        ):
            ratios = [a / b for a, b in zip(rows[name], rows["true error, median"], strict=True)]
            assert least <= min(ratios) <= max(ratios) <= most


def test_block(capsys):
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (shown,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    exec(compile(block, "bounds.md", "exec"), {})
    assert capsys.readouterr().out == shown
