"""What an installed wheel has to hold and do: run in an environment that has it, and nothing else.

python tests/installed.py dist/*.whl
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import metadata, version
from pathlib import Path

import numpy as np

import lowrank
from lowrank import gallery


def check_contents(wheel: str) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"lowrank", f"lowrank_xp-{lowrank.__version__}.dist-info"}, tops
    assert "lowrank/py.typed" in names
    assert any(name.startswith("lowrank/data/") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def check_work(folder: str) -> None:
    s = gallery.slow(200)
    A = gallery.matrix(s, (300, 200), rng=0)
    for complex_or_not in (A, A * np.exp(1j)):
        found = lowrank.svd(complex_or_not, rtol=1e-2, rng=0)
        assert found.converged
        assert found.rank == gallery.best_rank(s, rtol=1e-2)
    for name in ("qb", "range_finder", "interpolative", "cur"):
        assert getattr(lowrank, name)(A, rtol=1e-2, rng=0).converged
    assert lowrank.eigh(A.T @ A, 5, rng=0).rank == lowrank.nystrom(A.T @ A, 5, rng=0).rank == 5
    np.save(f"{folder}/A.npy", A)
    lowrank_command = Path(sys.executable).with_name("lowrank")
    command = [lowrank_command, "A.npy", "--rtol", "1e-2", "--json"]
    told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert "15" in told.stdout
    json.loads(told.stdout)


def main() -> None:
    assert "site-packages" in lowrank.__file__
    heavy = {"torch", "scipy", "cupy", "matplotlib"} & set(sys.modules)
    assert not heavy, heavy
    assert metadata("lowrank-xp")["License-Expression"] == "BSD-3-Clause"
    assert version("lowrank-xp") == lowrank.__version__
    for wheel in sys.argv[1:]:
        check_contents(wheel)
    with tempfile.TemporaryDirectory() as folder:
        check_work(folder)
    print(f"lowrank {lowrank.__version__} with NumPy {np.__version__}: as it should be")


if __name__ == "__main__":
    main()
