"""The array libraries that every numerical test runs on, and how tests talk to them."""

import os
import sys
import zlib

# The matrices here are small: threads only wait for one another, the more so on a busy machine.
# Set before any array library is imported.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing import set_forkserver_preload
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "default",
    deadline=None,
    derandomize=True,
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("nightly", settings.get_profile("default"), max_examples=1500)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
# Imported once, by the process from which those of the tests are forked.
set_forkserver_preload(
    [
        "pytest",
        "torch._dynamo",
        "torch.distributed.checkpoint.state_dict",
        "torch.distributed.fsdp",
        "torch.distributed.tensor",
        "lowrank.optim",
        "matplotlib.pyplot",
        "scipy.sparse.linalg",
        "sklearn.datasets",
    ]
)
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"

DTYPES = ("float32", "float64", "complex64", "complex128")


@dataclass(frozen=True, repr=False)
class Backend:
    """An array library on one of its devices."""

    name: str
    xp: ModuleType
    device: Any
    has_float64: bool = True
    readonly: bool = False

    def __repr__(self) -> str:
        return self.name

    @property
    def dtypes(self) -> tuple[str, ...]:
        return DTYPES if self.has_float64 else DTYPES[::2]

    def asarray(self, X: np.ndarray) -> Any:
        """The NumPy array `X` on this library and device."""
        if self.xp is np or self.name.startswith("numpy"):
            X = X.copy()
            X.flags.writeable = not self.readonly
            return X
        if self.name.startswith("torch"):
            return self.xp.asarray(X.copy(), device=self.device)
        return self.xp.asarray(X, device=self.device)

    def numpy(self, X: Any) -> np.ndarray:
        """`X` as a NumPy array of doubled precision, after checking where it lives."""
        import array_api_compat  # noqa: PLC0415

        assert array_api_compat.array_namespace(X).__name__ == self.namespace
        assert array_api_compat.device(X) == self.device
        if self.name.startswith("strict"):
            X = array_api_compat.to_device(X, self.xp.Device("CPU_DEVICE"))
        if self.name.startswith("torch"):
            X = X.cpu().resolve_conj().numpy()
        if self.name.startswith("cupy"):
            X = X.get()
        X = np.asarray(X)
        return X.astype(np.complex128 if X.dtype.kind == "c" else np.float64)

    @property
    def namespace(self) -> str:
        library = self.name.partition(":")[0]
        own = {"strict": "array_api_strict", "jax": "jax.numpy"}
        return own.get(library, f"array_api_compat.{library}")

    def skip_if_flushed(self, dtype: str) -> None:
        """For matrices with entries below the normal numbers."""
        if self.name == "cupy" and dtype in ("float32", "complex64"):
            pytest.skip(
                "CuPy compiles its kernels to take such numbers of single precision as zero"
            )

    def eps(self, dtype: str) -> float:
        return float(np.finfo(dtype).eps)


def _numpy_and_strict() -> list[Backend]:
    import array_api_compat.numpy as xnp  # noqa: PLC0415
    import array_api_strict as strict  # noqa: PLC0415

    return [
        Backend("numpy", xnp, "cpu"),
        Backend("numpy:readonly", xnp, "cpu", readonly=True),
        Backend("strict", strict, strict.Device("device1")),
        Backend("strict:no_float64", strict, strict.Device("no_float64"), has_float64=False),
    ]


def _torch() -> list[Backend]:
    try:
        import array_api_compat.torch as xt  # noqa: PLC0415
        import torch  # noqa: PLC0415
    except ImportError:
        ABSENT["torch:cpu"] = ABSENT["torch:cuda"] = "torch is not installed"
        return []
    found = [Backend("torch:cpu", xt, torch.device("cpu"))]
    if torch.cuda.is_available():
        cuda = torch.device("cuda", torch.cuda.current_device())
        found.append(Backend("torch:cuda", xt, cuda))
    else:
        ABSENT["torch:cuda"] = "torch sees no CUDA device"
    return found


def _cupy() -> list[Backend]:
    try:
        import array_api_compat.cupy as xc  # noqa: PLC0415
        import cupy  # noqa: PLC0415

        cupy.zeros(1)
    except ImportError:
        ABSENT["cupy"] = "cupy is not installed"
        return []
    except Exception as error:
        ABSENT["cupy"] = f"cupy cannot run here: {type(error).__name__}"
        return []
    return [Backend("cupy", xc, cupy.cuda.Device(0))]


def _jax() -> list[Backend]:
    try:
        import jax  # noqa: PLC0415
    except ImportError:
        ABSENT["jax"] = "jax is not installed"
        return []
    jax.config.update("jax_enable_x64", True)  # otherwise there is no double precision
    # Most of what is compiled runs once.
    jax.config.update("jax_disable_most_optimizations", not NIGHTLY)
    return [Backend("jax", jax.numpy, jax.devices("cpu")[0])]


ABSENT: dict[str, str] = {}
BACKENDS = [*_numpy_and_strict(), *_torch(), *_cupy()]
# Compiles every operation for every shape, which takes long: for a few tests.
COMPILING = _jax()


def combinations(test: str) -> list[tuple[Backend, str]]:
    """The pairs of library and dtype that a test of this name runs on.

    On a GPU, and in the nightly profile, all. Else each dtype with NumPy, on arrays that may be
    written in two and must not be in the others; and with every other library a real and a complex
    one, of which one is single and one is double, so that any two of library, kind and precision
    meet. Tests take turns at the two such choices.
    """
    every = [(backend, dtype) for backend in BACKENDS for dtype in backend.dtypes]
    if NIGHTLY:
        return every
    single, double = turn = [("float32", "complex128"), ("complex64", "float64")][_turn_of(test)]
    mine = {"strict": (double,), "strict:no_float64": (single,), "torch:cpu": turn, "numpy": turn}
    mine["numpy:readonly"] = tuple(dtype for dtype in DTYPES if dtype not in turn)
    return [pair for pair in every if pair[1] in mine.get(pair[0].name, DTYPES)]


def libraries(test: str) -> list[Backend]:
    """Those of a test without dtypes: arrays that may be written or not, float64 or not, in turn.

    What is true of float64 alone is tested `in_double`.
    """
    others = ["numpy strict", "numpy:readonly strict:no_float64"][_turn_of(test)].split()
    return [backend for backend in BACKENDS if NIGHTLY or backend.name not in others]


in_double = pytest.mark.parametrize(
    "backend", [each for each in BACKENDS if each.has_float64 and not each.readonly], ids=repr
)


def in_turn(name: str, values: Iterable[Any]) -> pytest.MarkDecorator:
    """For what is no matter of the library: NumPy meets every value, and every other library one.

    On a GPU, and in the nightly profile, all.
    """
    values, others = list(values), ["numpy:readonly", "strict", "strict:no_float64", "torch:cpu"]
    pairs = [
        pytest.param(backend, value, id=f"{backend.name}-{value}")
        for backend in BACKENDS
        for at, value in enumerate(values)
        if NIGHTLY or backend.name not in others or others.index(backend.name) % len(values) == at
    ]
    return pytest.mark.parametrize(("backend", name), pairs)


def _turn_of(test: str) -> int:
    return zlib.crc32(test.encode()) % 2


@pytest.fixture(scope="module")
def forgets_compiled():
    """What JAX compiles for every shape takes megabytes each."""
    yield
    if COMPILING:
        sys.modules["jax"].clear_caches()


def pytest_generate_tests(metafunc):
    """Run a test that asks for `backend`, and maybe `dtype`, on what the machine has."""
    marks = metafunc.definition.iter_markers("parametrize")
    if "backend" not in metafunc.fixturenames or any("backend" in mark.args[0] for mark in marks):
        return
    test = f"{metafunc.module.__name__}.{metafunc.function.__name__}"
    if "dtype" in metafunc.fixturenames:
        pairs = combinations(test)
        names = [f"{backend.name}-{dtype}" for backend, dtype in pairs]
        metafunc.parametrize(("backend", "dtype"), pairs, ids=names)
    else:
        found = libraries(test)
        metafunc.parametrize("backend", found, ids=[backend.name for backend in found])
