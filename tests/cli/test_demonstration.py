import os
import re
import subprocess
import sys

import numpy as np

from lowrank._cli import demonstration


def test_table():
    """As a user runs it: three lines, near the best rank, every bound above its true error."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "lowrank"],
        capture_output=True,
        text=True,
        check=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    assert done.stderr == ""
    rows = [line.split() for line in done.stdout.splitlines() if re.match(r" *1e-0\d ", line)]
    assert [float(row[0]) for row in rows] == [1e-1, 1e-2, 1e-3]
    s = np.linalg.svd(demonstration.elevation(), compute_uv=False)
    for row in rows:
        rtol, bound, error = float(row[0]), float(row[3]), float(row[4])
        rank, best = int(row[1]), int(row[2])
        assert np.linalg.norm(s[best:]) <= rtol * np.linalg.norm(s) < np.linalg.norm(s[best - 1 :])
        assert best <= rank <= max(best + 1, 1.05 * best)
        assert error <= bound <= rtol
        assert row[5] == f"{rank * (344 + 403 + 1) / (344 * 403):.0%}"
        assert float(row[6]) > 0


def test_data():
    A = demonstration.elevation()
    assert A.shape == (344, 403)
    assert (A.min(), A.max()) == (236, 1076)
