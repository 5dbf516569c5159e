"""The model of the cost of a sharded SVD, against what two and four ranks communicate."""

import importlib
import math
from pathlib import Path

import factorizing
import pytest
import ranks

world = ranks.world
worlds = ranks.worlds
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model():
    if not (ROOT / "benchmarks").exists():
        pytest.skip("the benchmarks are not part of this source distribution")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield importlib.import_module("benchmarks.machines.scaling")


@pytest.mark.parametrize(("m", "n", "k", "q"), [(300, 80, 10, 2), (90, 50, 17, 0), (64, 40, 30, 1)])
def test_counts_are_exact(world, model, m, n, k, q):
    rule = {"rank": k, "power_iterations": q}
    for counts, calls, *_ in world.run(factorizing.communication, m, n, rule):
        expected = model.Counts.of_svd(n, k, q=q, rows=math.ceil(m / world.count))
        assert counts["all_reduce"] == expected.reduced
        assert counts["all_gather"] == expected.gathered
        assert counts["broadcast"] == calls["broadcast"] == expected.broadcasts
        assert calls["all_reduce"] == expected.reduces
        assert calls["all_gather"] == expected.gathers


def test_the_table_of_the_documentation_is_that_of_the_script(model):
    text = model.page(2.0**20, 2**14, 256, [1, 4, 64, 4096], model.Machine())
    assert model.TABLE.read_text(encoding="utf-8") == text
