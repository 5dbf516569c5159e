"""The published experiments: what their program measures, in small, and the page that shows it."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
EXPLANATION = ROOT / "docs" / "explanation"
N, WIDTH = 128, 16


@pytest.fixture(scope="module")
def published():
    if not (ROOT / "benchmarks" / "results").exists():
        pytest.skip("the results are not part of this source distribution")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield importlib.import_module("benchmarks.studies.published")


@pytest.fixture(scope="module")
def matrix(published):
    return published.graded(N)


@pytest.fixture(scope="module", params=[0, 1])
def ours(request, published, matrix):
    steps = published.householder(matrix, WIDTH, seed=0, power_iterations=request.param)
    return published.followed(matrix, steps)


def test_matrix_has_the_published_spectrum(matrix):
    """Down to the rounding of its entries."""
    s = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    assert matrix.dtype == np.float32
    assert s == pytest.approx(np.logspace(0, -14, N), rel=1e-3, abs=2e-7)


def test_truths_of_a_basis_that_is_known(published):
    A, Q = np.diag([3.0, 2.0, 1.0]), np.eye(3, 1)
    assert published.truths(A, Q) == pytest.approx(
        {"orthogonality": 0.0, "residual": 2.0, "error": 5.0**0.5}
    )
    assert published.truths(A, 2.0 * Q)["orthogonality"] == pytest.approx(3.0)
    assert published.energies(A, Q) == pytest.approx(5.0**0.5)
    assert published.energies(A, 2.0 * Q) == 0.0


def test_reflectors_stay_orthonormal_to_the_last_column(ours):
    assert ours["ranks"] == list(range(WIDTH, N + 1, WIDTH))
    assert max(ours["orthogonality"]) < 4 * np.finfo(np.float32).eps * N**0.5


def test_error_is_tracked_to_rounding_and_bounded(ours):
    for true, tracked, bound in zip(ours["error"], ours["tracked"], ours["bound"], strict=True):
        assert tracked == pytest.approx(true, rel=5e-3, abs=2e-6)
        assert bound >= true


def test_energies_do_not_see_errors_below_the_root_of_eps(ours):
    assert ours["energies"][0] == pytest.approx(ours["error"][0], rel=1e-2)
    for energy, true in zip(ours["energies"][3:], ours["error"][3:], strict=True):
        assert true < 1e-5
        assert energy == 0.0 or energy > 5 * true


@pytest.mark.parametrize("again", [False, True])
def test_gram_schmidt_loses_what_is_published(published, matrix, again):
    """All without a second projection; with it the last blocks, whose panels are rounding errors.

    What it tracks is the residual that it subtracts, which goes on falling.
    """
    found = published.followed(matrix, published.gram_schmidt(matrix, WIDTH, seed=0, again=again))
    assert found["orthogonality"][0] < 1e-6
    assert (found["orthogonality"][N // WIDTH // 2] < 1e-5) is again
    assert found["orthogonality"][-1] > (2e-5 if again else 0.9)
    assert found["tracked"][-1] < 1e-5
    assert found["error"][-1] > 10 * found["tracked"][-1]


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_all_methods_of_the_grid_find_so_many_columns(published, library):
    xp = pytest.importorskip(library)
    X = xp.eye(40)
    for name, call in published.calls_of(X, 24, xp).items():
        found = call(0)
        rank = getattr(found, "rank", None)
        shape = (found[0] if isinstance(found, tuple) else found).shape if rank is None else None
        assert rank == 24 or 24 in shape, name


def test_the_page_shows_the_newest_results(published):
    """Its tables are those that the program makes of the file."""
    report = importlib.import_module("benchmarks.report.published")
    (content,) = report.select(report.newest(report.RESULTS), kind="published")
    shown = (EXPLANATION / "published_tables.md").read_text(encoding="utf-8")
    assert report.pages(content) == shown
    page = (EXPLANATION / "algorithm.md").read_text(encoding="utf-8")
    parts = {row["section"] for row in content["rows"]}
    included = {part for part in ("stability", "speed") if f'"<!-- {part} -->"' in page}
    assert parts == included
    raw = json.loads((report.RESULTS / content["file"]).read_text("utf-8"))
    assert not raw["quick"]
