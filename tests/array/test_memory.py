"""How much memory a call takes beyond A, counted by the allocations of NumPy."""

import tracemalloc
from functools import cache
from itertools import product
from math import prod

import numpy as np
import pytest
from conftest import NIGHTLY
from matrices import with_spectrum

import lowrank
from lowrank import gallery

SHAPES = [(3000, 300), (900, 900), (300, 3000)]


def peak(call):
    """Entries of float64 at the peak, and the result."""
    call()  # what Python and the libraries remember from a first call is not counted
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        found = call()
        return (tracemalloc.get_traced_memory()[1] - before) / 8, found
    finally:
        tracemalloc.stop()


@cache
def matrix(spectrum, shape):
    values = [1.0] * min(shape) if spectrum == "flat" else getattr(gallery, spectrum)(min(shape))
    return with_spectrum(values, shape, "float64")


SPECTRA = ("slow", "fast", "flat")
# Every shape with two spectra, one for each rank.
FIXED = [
    (shape, k, SPECTRA[turn])
    for (at, shape), (later, k), turn in product(enumerate(SHAPES), enumerate((64, 150)), range(3))
    if NIGHTLY or turn == (at + later) % 3
]


@pytest.mark.parametrize(("shape", "k", "spectrum"), FIXED)
def test_at_a_fixed_rank(shape, k, spectrum):
    A, (m, n) = matrix(spectrum, shape), shape
    least = (3 * m + n) * k + 4 * k**2 + (m + n) * 64
    assert peak(lambda: lowrank.range_finder(A, k, rng=0))[0] < least
    svd = (3 * m + 4 * n) * k + 10 * k**2
    assert peak(lambda: lowrank.svd(A, k, oversampling=0, rng=0))[0] < svd
    # power iterations have a sketch on either side
    longer = (3 * max(m, n) + n) * k + 4 * k**2 + (m + n) * 64
    assert peak(lambda: lowrank.range_finder(A, k, power_iterations=1, rng=0))[0] < longer


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rtol", [1e-1, 1e-3])
@pytest.mark.parametrize("name", ["range_finder", "qb", "svd"])
def test_to_a_tolerance(shape, rtol, name):
    """One copy of A, or none where it may be overwritten, and what is thin; b columns a block."""
    A, (m, n) = matrix("slow", shape), shape
    b, function = 64, getattr(lowrank, name)
    size, found = peak(lambda: function(A, rtol=rtol, rng=0))
    k = found.history[-1].rank  # columns of the basis before they are cut
    thin = (2 * m + n) * k + 10 * k**2 + 3 * (m + n) * b
    assert size < m * n + thin
    assert size > m * n
    copies = iter([A.copy() for _ in range(2)])
    size, found = peak(lambda: function(next(copies), rtol=rtol, rng=0, overwrite_a=True))
    assert found.history[-1].rank == k
    assert size < thin + max(0, n - m) * k


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rtol", [1e-1, 1e-3])
def test_to_a_tolerance_by_energies_and_samples(shape, rtol):
    A, (m, n) = matrix("slow", shape), shape
    for certificate in ("energy", "sampled"):
        size, found = peak(lambda c=certificate: lowrank.svd(A, rtol=rtol, rng=0, certificate=c))
        k = found.history[-1].rank
        assert size < (3 * m + 4 * n) * k + 10 * k**2 + 3 * (m + n) * 64


@pytest.mark.parametrize("shape", [(12_000, 300), (300, 12_000), (10, 300, 1200)])
def test_what_is_centered_is_a_sixteenth_at_a_time(shape):
    """And less its mean, and as a temporary."""
    A, k = np.random.default_rng(0).standard_normal(shape), 10
    *batch, m, n = shape
    size, _ = peak(lambda: lowrank.svd(A, k, oversampling=0, rng=0, center=True))
    assert size < A.size * 3 / 16 + ((3 * m + 4 * n) * k + 10 * k**2) * prod(batch)


@pytest.mark.parametrize("shape", [(12_000, 300), (300, 12_000)])
@pytest.mark.parametrize("name", ["svd", "centered svd", "interpolative", "cur"])
def test_half_precision_is_single_by_blocks_of_rows(name, shape):
    """Four sixteenths of A in float32, mn/2 entries of float64, with what is made of them."""
    (m, n), k = shape, 10
    A = matrix("slow", shape).astype("float16")
    options = {"center": True} if name == "centered svd" else {}
    function = getattr(lowrank, name.removeprefix("centered "))
    size, found = peak(lambda: function(A, k, oversampling=0, rng=0, **options))
    assert found.rank == k
    assert size < m * n / 8 + (3 * m + 4 * n) * k / 2 + 10 * k**2
