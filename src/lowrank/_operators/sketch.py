"""Test matrices: Gaussian, drawn on the device of the array, or given by the caller."""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import numpy as np

from lowrank import _array as xa
from lowrank._array import Array, Namespace
from lowrank._operators import Operator, numpy_dtype

# Streams of random numbers on the host: fixed, so that results do not depend on threads.
STREAMS = 8
LEAST_PER_THREAD = 2**16

Source = Callable[[tuple[int, ...], Any], Array]  # (shape, dtype) -> test matrix


class TestMatrix:
    """The test matrix Ω for `operator`, drawn one block of columns at a time.

    The seed can be *salted*: a number that depends on the matrix, such as its norm, is mixed into
    it, so that one seed gives different test matrices for different matrices.
    """

    def __init__(self, operator: Operator, test_matrix: Any, rng: Any) -> None:
        self._operator, self._salt = operator, 0.0
        self._gaussian: Source | None = None
        self._given = test_matrix  # None, a callable, or the columns of an array not drawn yet
        self._last: Array | None = None
        if xa.is_array_api_obj(test_matrix):
            self._given = self._checked(test_matrix)
        elif test_matrix is None:
            self._rng = as_generator(rng, operator.xp, operator.device)
        elif not callable(test_matrix):
            raise TypeError(
                "`test_matrix` must be an array or a callable (shape, dtype, device) -> array, "
                f"got {type(test_matrix).__name__}."
            )

    @property
    def is_free(self) -> bool:
        """Whether the caller gave no test matrix."""
        return self._given is None

    def draw(self, columns: int) -> Array:
        """The next `columns` columns; fewer if a given array has no more."""
        operator = self._operator
        shape = (*operator.shape[:-2], operator.test_rows, columns)
        if self._given is None:
            if self._gaussian is None:
                self._gaussian = gaussian_source(
                    self._rng, operator.xp, operator.device, purpose="sketch", salt=self._salt
                )
            return self._gaussian(shape, operator.dtype)
        if not callable(self._given):
            self._last = xa.leading(self._given, columns)
            self._given = self._given[..., self._last.shape[-1] :]
            return self._last
        Omega = self._last = self._checked(self._given(shape, operator.dtype, operator.device))
        if Omega.shape[-1] != columns:
            raise ValueError(
                f"`test_matrix` must return {columns} columns, got shape {tuple(Omega.shape)}."
            )
        return Omega

    def redraw(self, columns: int) -> Array:
        """The columns of the last draw again; fresh ones of a Gaussian matrix.

        So no Gaussian test matrix is kept only because a product may have to be repeated.
        """
        return self.draw(columns) if self._last is None else self._last

    def gaussian_vector(self) -> Array | None:
        """One Gaussian column, from a stream of its own; None if the caller gave a test matrix."""
        if not self.is_free:
            return None
        operator = self._operator
        source = gaussian_source(self._rng, operator.xp, operator.device, purpose="probe")
        return source((operator.test_rows, 1), operator.dtype)

    def salt_seed(self, salt: float) -> None:
        """Go on with a new random stream, from the seed and `salt`, such as the norm of A.

        With one seed, a matrix and its residual after a projection then get different sketches.
        """
        self._salt, self._gaussian = salt, None

    def move(self, operator: Operator) -> None:
        """Go on in the library, dtype and device of `operator`."""
        self._operator, self._gaussian = operator, None

    def _checked(self, test_matrix: Any) -> Array:
        operator = self._operator
        Omega, _ = xa.as_matrix(test_matrix, name="test_matrix", stacks=True)
        xa.same_place(operator.empty(0), Omega, names=("A", "test_matrix"))
        shape = (*operator.shape[:-2], operator.test_rows)
        if tuple(Omega.shape[:-1]) != shape:
            expected = ", ".join(map(str, shape))
            raise ValueError(
                f"the test matrix must have shape ({expected}, columns), got {tuple(Omega.shape)}."
            )
        return Omega


def gaussian_source(
    rng: Any, xp: Namespace, device: Any, *, purpose: str, salt: float = 0.0
) -> Source:
    """Function drawing standard Gaussian arrays; complex ones have E|ω|² = 1.

    `rng` follows SPEC 7 (None, int, SeedSequence, BitGenerator, Generator) or is a generator of
    the array's own library and device. A NumPy seed or generator gives one integer. Together with
    the purpose and the salt it seeds a generator on the device. So no random numbers are copied to
    the device, and draws for different purposes are independent even if they share one seed.
    """
    generator, number = as_generator(rng, xp, device), int.from_bytes(purpose.encode(), "little")
    if xa.is_traced(generator):
        folded = xa.loaded("jax").random.fold_in(generator, number % 2**32)
        return _native_source(folded, xp, device)
    if not isinstance(generator, np.random.Generator):
        return _native_source(generator, xp, device)
    # 16 bits of the salt: rounding does not change them, a projection does.
    fraction, exponent = math.frexp(salt)
    key = [number, round(fraction * 2**16), exponent + 2**15]
    seeds = np.random.SeedSequence([int(generator.integers(2**63)), *key])
    seed = int(seeds.generate_state(1, np.uint64)[0]) % 2**63
    if xa.is_torch_namespace(xp):
        native = xa.loaded("torch").Generator(device=device).manual_seed(seed)
        of_torch = _native_source(native, xp, device)
        if device.type != "cpu":
            return of_torch
        # On two cores torch draws 10⁶ numbers in 5 ms in single precision, and in 25 in double.
        of_numpy = _host_source(seeds, xp, device)
        double = (xp.float64, xp.complex128)
        return lambda shape, dtype: (of_numpy if dtype in double else of_torch)(shape, dtype)
    if xa.is_cupy_namespace(xp):
        random = xa.loaded("cupy").random
        with device:
            native = random.Generator(random.Philox4x3210(seed))
            return _native_source(native, xp, device)
    if xa.is_jax_namespace(xp):
        return _native_source(xa.loaded("jax").random.key(seed % 2**32), xp, device)
    return _host_source(seeds, xp, device)


def as_generator(rng: Any, xp: Namespace, device: Any) -> Any:
    native = "jax" if xa.is_jax_array(rng) else type(rng).__module__.partition(".")[0]
    if native not in ("torch", "cupy", "jax"):
        return np.random.default_rng(rng)
    if native not in xp.__name__:
        raise TypeError(
            f"`rng` is a generator of {native}, but the array belongs to {xp.__name__}; pass an "
            "integer or a numpy.random.Generator, which work with every library."
        )
    if native == "jax" and not xa.is_traced(rng):  # a key, but no two draws may be the same
        return np.random.default_rng(np.asarray(xa.loaded("jax").random.key_data(rng)))
    if native == "torch" and (
        rng.device.type != device.type or (rng.device.index or 0) != (device.index or 0)
    ):
        raise ValueError(
            f"`rng` is a torch.Generator on {rng.device}, but the array is on {device}; create it "
            f"with torch.Generator(device={str(device)!r}), or pass an integer."
        )
    return rng


def _native_source(generator: Any, xp: Namespace, device: Any) -> Source:
    draws = count()

    def draw(shape: tuple[int, ...], dtype: Any) -> Array:
        if xa.is_torch_namespace(xp):
            # torch's complex normal already has variance 1/2 in each part
            return xa.loaded("torch").randn(shape, generator=generator, dtype=dtype, device=device)
        if xa.is_jax_namespace(xp):
            key = xa.loaded("jax").random.fold_in(generator, next(draws))
            return xa.to_device(xa.loaded("jax").random.normal(key, shape, dtype), device)
        with device:
            return _assemble(generator.standard_normal, shape, np.dtype(dtype))

    return draw


def _host_source(seed: np.random.SeedSequence, xp: Namespace, device: Any) -> Source:
    generators = [np.random.Generator(np.random.SFC64(child)) for child in seed.spawn(STREAMS)]

    def normal(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        drawn = np.empty(shape, dtype=dtype)
        parts = np.array_split(drawn.reshape(-1), STREAMS)

        def fill(stream: int) -> None:
            generators[stream].standard_normal(out=parts[stream], dtype=dtype)

        threads = min(_threads(), drawn.size // LEAST_PER_THREAD)
        if threads > 1:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(fill, range(STREAMS)))
        else:
            for stream in range(STREAMS):
                fill(stream)
        return drawn

    def draw(shape: tuple[int, ...], dtype: Any) -> Array:
        drawn = _assemble(normal, shape, numpy_dtype(dtype))
        return drawn if xa.is_numpy_namespace(xp) else xp.asarray(drawn, device=device)

    return draw


def _threads() -> int:
    """OMP_NUM_THREADS if set, else the number of processors, at most STREAMS."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return int(threads) if threads.isdecimal() else min(os.cpu_count() or 1, STREAMS)


def _assemble(normal: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if dtype.kind != "c":
        return normal(shape, dtype=dtype)
    part = np.dtype(f"f{dtype.itemsize // 2}")
    real, imaginary = normal(shape, dtype=part), normal(shape, dtype=part)
    return (real + 1j * imaginary) * part.type(0.5**0.5)
