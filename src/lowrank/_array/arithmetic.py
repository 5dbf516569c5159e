"""Arithmetic in the precision of the arrays, whatever the process has set.

A training script may allow TF32 or bfloat16 for products in single precision, globally or with
autocast. Then error bounds would not hold, and columns would not be orthonormal. NumPy's warnings
are silenced: overflow is handled where it occurs.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

_P = ParamSpec("_P")
_T = TypeVar("_T")

UNTRACED = (
    "This call depends on the values of an array, which are unknown to JAX here; give a rank and "
    "check_finite=False (range_finder, qb, svd, nystrom), or call it outside of jit and vmap."
)
FULL = ("ieee", "none", "highest")  # names of full precision in torch
CUPY_DEFAULT, CUPY_REDUCED = 1, (3, 6, 7)  # CuPy's own: float16, bfloat16, TF32


class full_precision:  # noqa: N801
    """Context manager: products in the precision of their arrays; settings are restored after it.

    The settings of the libraries belong to the whole process: they are restored when the last
    thread has left. If an interruption skips `__exit__`, the object leaves when it is deleted.
    """

    _lock = threading.RLock()
    _inside: dict[int, int] = {}  # noqa: RUF012  # the thread of each
    _undo: list[Callable[[], None]] = []  # noqa: RUF012

    def __enter__(self) -> None:
        self._autocast = ExitStack()
        torch: Any = sys.modules.get("torch")
        for device in ("cpu", "cuda") if hasattr(torch, "is_autocast_enabled") else ():
            if torch.is_autocast_enabled(device):
                self._autocast.enter_context(torch.autocast(device, enabled=False))
        self._join({id(self): threading.get_ident()})

    def __exit__(self, *_: object) -> None:
        self._leave([id(self)])
        self._autocast.close()

    def __del__(self) -> None:
        self._leave([id(self)])

    @classmethod
    def _join(cls, members: dict[int, int]) -> None:
        with cls._lock:
            cls._inside |= members
            # Checked each time: another thread may have set them in between.
            for read, write, full in _reduced():
                cls._undo.append(partial(_restored, read, write, read(), full))
                write(full)

    @classmethod
    def _leave(cls, members: list[int]) -> None:
        with cls._lock:
            for member in members:
                cls._inside.pop(member, None)
            while cls._undo and not cls._inside:
                cls._undo.pop()()


@contextmanager
def as_the_caller_set() -> Iterator[None]:
    """The caller's settings again, while a callback of the caller runs."""
    here = threading.get_ident()
    members = {key: value for key, value in full_precision._inside.items() if value == here}
    full_precision._leave([*members])
    try:
        yield
    finally:
        full_precision._join(members)


def _restored(read: Callable[[], Any], write: Callable[[Any], None], was: Any, full: Any) -> None:
    if read() == full:  # not changed since
        write(was)


def _reduced() -> Iterator[tuple[Callable[[], Any], Callable[[Any], None], Any]]:
    """For each setting that allows less precision: its getter, setter, and full-precision value."""
    torch: Any = sys.modules.get("torch")
    backends: Any = getattr(torch, "backends", None)
    if hasattr(getattr(getattr(backends, "mkldnn", None), "matmul", None), "fp32_precision"):
        for switch in (backends.cuda.matmul, backends.mkldnn.matmul):
            if switch.fp32_precision not in FULL:
                name = "fp32_precision"
                yield partial(getattr, switch, name), partial(setattr, switch, name), "ieee"
    elif backends is not None and torch.get_float32_matmul_precision() not in FULL:
        yield torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"
    cupy: Any = sys.modules.get("cupy._core._routines_linalg")
    if cupy is not None and cupy.get_compute_type(np.float32) in CUPY_REDUCED:
        single = np.float32
        read, write = partial(cupy.get_compute_type, single), partial(cupy.set_compute_type, single)
        yield read, write, CUPY_DEFAULT


def in_full_precision(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorate a public function to compute in full precision, without NumPy's warnings."""

    @wraps(function)
    def computed(*args: _P.args, **options: _P.kwargs) -> _T:
        try:
            with np.errstate(all="ignore"), full_precision():
                return function(*args, **options)
        except TypeError as error:
            if type(error).__module__.startswith("jax"):
                raise TypeError(UNTRACED) from error
            raise

    return computed
