import subprocess
import sys

CODE = """
import sys
import lowrank
allowed = {"lowrank", "numpy", "array_api_compat"}
found = {name.partition(".")[0] for name in sys.modules} - before - allowed
# NumPy's compiled modules register the runtime they were built with
found = {name for name in found if "cython" not in name}
print(sorted(name for name in found if name not in sys.stdlib_module_names))
"""


def test_import_loads_numpy_and_array_api_compat_alone():
    """No torch, SciPy, CuPy or anything else that is not in the standard library."""
    code = "import sys; before = {n.partition('.')[0] for n in sys.modules}\n" + CODE
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_use_on_numpy_loads_nothing_else():
    code = (
        "import sys, numpy, lowrank; lowrank.svd(numpy.eye(5), rtol=0.1);"
        "print([n for n in ('torch', 'scipy', 'cupy', 'matplotlib') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
