"""What measures on a GPU: its model, its file, its page, and its smallest matrices on a CPU."""

import importlib
import json
import warnings
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def scripts():
    if not (ROOT / "benchmarks").exists():
        pytest.skip("the benchmarks are not part of this source distribution")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        names = ("common.measuring", "common.results", "machines.gpu.__main__")
        names += ("machines.gpu.functions", "machines.gpu.model", "report.__main__")
        yield {name: importlib.import_module(f"benchmarks.{name}") for name in names}


@pytest.fixture
def files(scripts):
    return scripts["common.results"]


@pytest.fixture
def model(scripts):
    return scripts["machines.gpu.model"]


@pytest.fixture
def report(scripts):
    return scripts["report.__main__"]


HEADER = {"machine": {"device": "a GPU", "cpu": "a CPU", "cores": 2}, "quick": False, "kind": "gpu"}
HEADER |= {"commit": "abc", "date": "2026-01-31T00:00:00+00:00", "versions": {}, "source": {}}


# -- the model -------------------------------------------------------------------------------------


def works(model, count):
    """Segments of a few things each, of which every one may be what takes the time."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        segments = []
        for _ in range(rng.integers(1, 4)):
            names = rng.choice(model.NAMES[2:], 3, replace=False)
            times = 3e-4 * np.exp(2.0 * rng.standard_normal(3))
            costs = zip(names.tolist(), times, strict=True)
            segments.append({name: time / model.CONSTANTS[name] for name, time in costs})
        yield [{str(rng.choice(model.NAMES[:2])): 1}, *segments]


def test_known_constants_are_found_again(model):
    """Also where one row in ten is disturbed."""
    rng = np.random.default_rng(1)
    true = {name: value * rng.uniform(0.5, 2.0) for name, value in model.CONSTANTS.items()}
    rows = [{"work": w, "seconds": model.predicted(w, true)} for w in works(model, 400)]
    for row in rows[::10]:
        row["seconds"] *= 3.0
    found = model.refit([*rows, {"work": None, "seconds": 1.0}, {"seconds": None}])
    assert found["rows"] == 400
    assert found["within_30_percent"] == 360 > found["within_30_percent_before"]
    assert found["constants"] == pytest.approx(true, rel=0.05)


def test_what_no_row_depends_on_stays(model):
    work = [{"call, torch": 1}, {"operation, torch": 20, "read": 1}]
    found = model.refit(2 * [{"work": work, "seconds": 1e-3}])["constants"]
    assert model.predicted(work, found) == pytest.approx(1e-3, rel=0.05)
    untouched = set(model.NAMES) - {"call, torch", "operation, torch", "read"}
    assert all(found[name] == pytest.approx(model.CONSTANTS[name]) for name in untouched)
    assert model.refit([]) is None


def test_host_and_device_work_at_the_same_time_between_reads(model):
    constants = dict.fromkeys(model.NAMES, 1.0)
    host, device = {"operation, torch": 5}, {"byte": 3, "kernel": 1}
    assert model.predicted([{**host, **device}], constants) == 5
    assert model.predicted([{**host, "read": 1}, device], constants) == 5 + 1 + 4
    assert model.predicted(None, constants) is None


def test_operations_are_counted(model):
    A = torch.ones(64, 32, dtype=torch.float64)

    def call():
        B = (A.mT @ A)[1:, :]  # one product, and views
        return float(torch.linalg.qr(B)[1].sum())

    found = model.counted(call, "torch")
    work = {name: sum(of.get(name, 0) for of in found["work"]) for name in model.NAMES}
    assert (found["operations"], found["host_reads"], work["operation, torch"]) == (3, 1, 3)
    assert work["flop, 64"] >= 2 * 32 * 64 * 32
    assert (work["qr, column"], work["qr, entry"], work["read"]) == (31, 31 * 32, 1)
    assert model.counted(lambda: torch.linalg.eigvals(A[:32]), "torch")["work"] is None
    many = model.counted(lambda: [float(x + 1.0) for x in torch.ones(71)])
    assert len(many["work"]) <= 1 + model.SEGMENTS
    assert (sum(of.get("read", 0) for of in many["work"]), many["host_reads"]) == (71, 71)


# -- the file --------------------------------------------------------------------------------------


def test_a_part_replaces_its_own_rows_only(files, tmp_path):
    path = tmp_path / "gpu.json"
    first = files.Results(path, resume=True, **HEADER, tests={"passed": 3})
    for part in ("panels", "matrices"):
        first.begin(part)
        first.add(method="old")
    again = files.Results(path, resume=True, **HEADER | {"commit": "def"})
    assert [row["part"] for row in again.rows] == ["panels", "matrices"]
    again.begin("panels")
    again.add(method="new")
    again.add(method="newer")
    found = json.loads(path.read_text("utf-8"))
    rows = [(row["part"], row["method"]) for row in found["rows"]]
    assert rows == [("matrices", "old"), ("panels", "new"), ("panels", "newer")]
    assert {name: of["commit"] for name, of in found["parts"].items()} == {
        "matrices": "abc",
        "panels": "def",
    }
    assert found["tests"] == {"passed": 3}


@pytest.mark.parametrize("other", [{"quick": True}, {"machine": {"device": "another GPU"}}])
def test_another_run_is_not_mixed_in(files, tmp_path, other):
    files.Results(tmp_path / "gpu.json", **HEADER)
    with pytest.raises(SystemExit, match="of another run"):
        files.Results(tmp_path / "gpu.json", resume=True, **HEADER | other)


def test_code_is_what_is_no_comment(files):
    code = 'x = "# no comment"\n\ndef f():\n    """Words,\n    # more words"""\n    return x\n'
    assert files.code_of(code) == 'x = "# no comment"\ndef f():\n    return x'
    assert files.code_of(f"# words\n\n{code}") == files.code_of(code)
    assert files.code_of(code) != files.code_of(code.replace("return x", "return f"))
    assert files.sources().keys() == {"core", "optim"}


@pytest.mark.parametrize(
    ("shown", "counts"),
    [
        ("..F\n== 2 passed, 1 failed, 3 skipped, 4 errors in 1.00s ==\n", (2, 1, 3, 4)),
        ("....s..FE [ 50%]\n..", (8, 1, 1, 1)),  # that has been ended
        ("", (0, 0, 0, 0)),
    ],
)
def test_tests_are_counted(scripts, shown, counts):
    assert tuple(scripts["machines.gpu.functions"].counts(shown).values()) == counts


# -- the page --------------------------------------------------------------------------------------


def test_the_page_says_what_is_older_than_the_code(files, report, tmp_path):
    results = files.Results(tmp_path / "gpu.json", **HEADER | {"source": files.sources()}, tests={})
    group = {"dtype": "float32", "shape": [8, 8], "k": 4, "spectrum": "flat", "seconds": 1e-3}
    for part, method in (("published", "qb, q=0"), ("panels", "qr")):
        results.begin(part)
        section = {"panels": "panel"}.get(part, part)
        more = {"published": 7e-3, "published_fixed": None, "predicted": 2e-3, "predicted_by": "x"}
        results.add(**group, section=section, library="lowrank", method=method, ratio=1.0, **more)
    results.header["tests"] = {"passed": 1234, "failed": 5, "skipped": 6, "output": ""}
    results.header["parts"]["panels"]["source"] = {"core": "of yesterday", "optim": "too"}
    results.save()
    page = report.page(report.newest(tmp_path), tmp_path)
    assert "since these measurements: panels (float32; 2026-01-31)." in page
    assert "1,234 passed, 5 failed, 6 skipped" in page
    assert "**measured on another machine**" in page
    line = next(line for line in page.splitlines() if line.startswith("| 8×8, k = 4, flat |"))
    assert line == "| 8×8, k = 4, flat | 7.0 ms | 1.0 ms (2.0 ms) |"


# -- on a CPU --------------------------------------------------------------------------------------


def test_parts_run_on_a_cpu(scripts, files, model):
    gpu = scripts["machines.gpu.__main__"]
    results = files.Results(None, **HEADER)
    budget = scripts["common.measuring"].Budget(60.0)
    device = torch.device("cpu")
    bench = gpu.Bench(device, "small", results, budget, dict(model.CONSTANTS), "constants")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for part in ("published", "tolerances"):
            results.begin(part)
            gpu.PARTS[part](bench)
    assert {row["part"] for row in results.rows} == {"published", "tolerances"}
    for row in results.rows:
        assert row["skipped"] is None
        assert row.get("note") is None
        assert row["predicted"] > 0.0
        assert row["predicted_by"] == "constants"
        assert row["library"] == "torch" or row["orthogonality"] < 1e-4
