"""How often the host waits for a device, counted on tensors that say they are on one."""

import pytest
from matrices import with_spectrum

import lowrank
from lowrank import gallery

pytest.importorskip("torch")
from pretended import from_numpy, pretending, reads


@pytest.fixture
def A():
    with pretending():
        yield from_numpy(with_spectrum(gallery.slower(400), (400, 400), "float32"))


@pytest.mark.parametrize("options", [{}, {"power_iterations": 2}, {"side": "right"}])
def test_fixed_rank_reads_one_flag(A, options):
    count, _ = reads(lambda: lowrank.range_finder(A, 100, rng=0, **options))
    assert count == 1
    count, _ = reads(lambda: lowrank.range_finder(A, 100, rng=0, check_finite=False, **options))
    assert count == 0


def test_qr_reads_nothing(A):
    assert reads(lambda: lowrank.qr(A))[0] == 0


def test_two_numbers_per_block(A):
    """The error, and how far the reflectors are from unitary."""
    count, found = reads(lambda: lowrank.range_finder(A, rtol=5e-2, block_size=32, rng=0))
    blocks = len(found.history) - 1
    assert blocks >= 3
    assert count == 2 * blocks + 1  # and the norm of A


@pytest.mark.parametrize(("certificate", "beside"), [("energy", 1), ("sampled", 2)])
def test_one_number_per_look_and_block(A, certificate, beside):
    """The error, and how far the columns of a block are from orthonormal."""
    options = {"rtol": 1e-1, "rng": 0, "certificate": certificate, "block_size": 32}
    count, found = reads(lambda: lowrank.range_finder(A, **options))
    looks = len(found.history) - 1
    assert looks >= 2
    assert count == 2 * looks + beside  # and the norm of A, and what the seed depends on


@pytest.mark.parametrize(("certificate", "blocks", "beside"), [("exact", 2, 3), ("sampled", 1, 3)])
def test_one_number_per_spectral_look(A, certificate, blocks, beside):
    """And one for each block, or two where the residual is explicit."""
    options = {"norm": "spectral", "rng": 0, "certificate": certificate}
    count, found = reads(lambda: lowrank.range_finder(A, rtol=2e-2, **options))
    looks = len(found.history)
    assert looks >= 2
    # the norm of A, a lower bound on ‖A‖₂, and what the seed depends on
    assert count == looks + blocks * (looks - 1) + beside


def test_passes_and_products(A):
    found = lowrank.range_finder(A, 30, rng=0, power_iterations=2)
    assert (found.passes, found.products) == (5, 150)
    found = lowrank.qb(A, 30, rng=0)
    assert (found.passes, found.products) == (3, 60)  # and the norm, as for `svd`
    found = lowrank.svd(A, 30, rng=0)
    assert (found.passes, found.products) == (7, 240)
    for q in (0, 1, 2):
        for certificate in ("exact", "energy"):
            options = {"rng": 0, "power_iterations": q, "certificate": certificate}
            found = lowrank.range_finder(A, rtol=5e-2, **options)
            # a product for the sample, two for each power iteration, and one for the rows of B
            blocks = len(found.history) - 1
            assert found.products == (2 + 2 * q) * found.rank
            assert found.passes == (2 + 2 * q) * blocks + 1


@pytest.mark.parametrize(("name", "count"), [("qb", 1), ("svd", 2)])
def test_flags_and_norms_are_read_together(A, name, count):
    assert reads(lambda: getattr(lowrank, name)(A, 10, rng=0))[0] == count
    assert reads(lambda: getattr(lowrank, name)(A, 10, rng=0, norm="spectral"))[0] == count


def test_eigh_reads_four_times(A):
    """Of the basis, twice of QᴴAQ, and of the eigenvalues."""
    H = A + A.mT
    assert reads(lambda: lowrank.eigh(H, 10, rng=0))[0] == 4
    assert reads(lambda: lowrank.eigh(H, 10, rng=0, check_finite=False))[0] == 1
