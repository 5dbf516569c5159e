"""How often the host waits for the device, counted on torch by the operation that reads a value."""

import pytest
from matrices import with_spectrum

import lowrank
from lowrank import gallery

torch = pytest.importorskip("torch")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402


class Reads(TorchDispatchMode):
    """Counts `item`, `float`, `bool` and `int` of a tensor."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def reads(function):
    with Reads() as counter:
        result = function()
    return counter.count, result


@pytest.fixture
def A():
    return torch.asarray(with_spectrum(gallery.slower(400), (400, 400), "float32"))


@pytest.mark.parametrize("options", [{}, {"power_iterations": 2}, {"side": "right"}])
def test_fixed_rank_reads_one_flag(A, options):
    count, _ = reads(lambda: lowrank.range_finder(A, 100, rng=0, **options))
    assert count == 1
    count, _ = reads(lambda: lowrank.range_finder(A, 100, rng=0, check_finite=False, **options))
    assert count == 0


def test_qr_reads_nothing(A):
    assert reads(lambda: lowrank.qr(A))[0] == 0


def test_one_number_per_look(A):
    count, found = reads(lambda: lowrank.range_finder(A, rtol=5e-2, rng=0))
    looks = len(found.history) - 1
    assert looks >= 3
    assert count == looks + 1  # and the norm of A


def test_one_number_per_spectral_look(A):
    count, found = reads(lambda: lowrank.range_finder(A, rtol=2e-2, norm="spectral", rng=0))
    assert len(found.history) >= 2
    assert count == len(found.history) + 2  # the norm of A, and a lower bound on ‖A‖₂


def test_passes_and_products(A):
    found = lowrank.range_finder(A, 30, rng=0, power_iterations=2)
    assert (found.passes, found.products) == (5, 150)
    found = lowrank.qb(A, 30, rng=0)
    assert (found.passes, found.products) == (2, 60)
    found = lowrank.svd(A, 30, rng=0)
    assert (found.passes, found.products) == (6, 240)
    found = lowrank.range_finder(A, rtol=5e-2, rng=0)
    # every look multiplies 64 columns, the norm reads A once; the first block needs no look, and is
    # multiplied in one product with the first sample
    ranks = [look.rank for look in found.history]
    assert ranks[:4] == [0, 64, 128, 192]
    assert found.products == found.rank + 64 * (1 + found.rank // 512)
    # and columns that are expected to be needed later come along in one pass
    assert found.passes <= len(ranks[1:]) + 1


@pytest.mark.parametrize("norm", ["fro", "spectral"])
def test_two_numbers_per_look_at_a_krylov_space(A, norm):
    """Beside the error, how many columns are new, however many there are."""
    options = {"norm": norm, "krylov": True, "rng": 0}
    count, found = reads(lambda: lowrank.range_finder(A, rtol=5e-2, **options))
    looks = len(found.history)
    assert looks >= 2
    assert looks < count <= 2 * looks + 2


def test_eigh_reads_three_flags(A):
    """Whether the basis and QᴴAQ are finite, and whether that is Hermitian."""
    H = A + A.mT
    assert reads(lambda: lowrank.eigh(H, 10, rng=0))[0] == 3
    assert reads(lambda: lowrank.eigh(H, 10, rng=0, check_finite=False))[0] == 1
