import numpy as np
import pytest
from matrices import gaussian

import lowrank
from lowrank._operators.sketch import gaussian_source


def test_test_matrices_are_standard_gaussian(backend, dtype):
    """Mean, E|ω|² = 1, E|ω|⁴ = 3 (2 if complex), and E ω² = 0 if complex."""
    draw = gaussian_source(0, backend.xp, backend.device, purpose="sketch")
    Omega = backend.numpy(draw((400, 250), getattr(backend.xp, dtype)))
    assert Omega.shape == (400, 250)
    is_complex = np.dtype(dtype).kind == "c"
    deviation = 5 / 100_000**0.5  # five standard deviations of a mean of variance one
    assert abs(np.mean(Omega)) < deviation
    assert abs(np.mean(np.abs(Omega) ** 2) - 1) < 2 * deviation
    assert abs(np.mean(np.abs(Omega) ** 4) - (2 if is_complex else 3)) < 10 * deviation
    if is_complex:
        assert abs(np.mean(Omega**2)) < 2 * deviation
    # columns and rows are independent
    assert np.max(np.abs(Omega.conj().T @ Omega / 400 - np.eye(250))) < 0.5


def test_purposes_and_salts_have_their_own_streams(backend):
    drawn = [
        backend.numpy(
            gaussian_source(0, backend.xp, backend.device, purpose=purpose, salt=salt)(
                (3, 4), backend.xp.float32
            )
        )
        for purpose, salt in [("sketch", 0.0), ("sketch", 1.0), ("sketch", 0.999), ("gallery", 0.0)]
    ]
    host = np.random.default_rng(0).standard_normal((3, 4), dtype="float32")
    for i, first in enumerate([host, *drawn]):
        for second in drawn[i:]:
            assert not np.allclose(first, second)


def test_draws_go_on(backend):
    draw = gaussian_source(0, backend.xp, backend.device, purpose="sketch")
    first, second = (backend.numpy(draw((3, 4), backend.xp.float32)) for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    "rng",
    [0, np.int32(7), [1, 2], np.random.SeedSequence(3), np.random.PCG64(4), None],
    ids=lambda rng: type(rng).__name__,
)
def test_what_spec_7_accepts(backend, rng):
    A = backend.asarray(gaussian((6, 5), "float32"))
    assert lowrank.range_finder(A, 2, rng=rng).rank == 2


def test_a_generator_is_advanced(backend):
    A = backend.asarray(gaussian((6, 5), "float32"))
    generator = np.random.default_rng(5)
    lowrank.range_finder(A, 2, rng=generator)
    assert generator.random() != np.random.default_rng(5).random()


def test_native_generators():
    torch = pytest.importorskip("torch")
    A = torch.asarray(gaussian((30, 20), "float32"))
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    first = lowrank.range_finder(A, 5, rng=generator).Q
    assert not torch.equal(generator.get_state(), state)
    again = lowrank.range_finder(A, 5, rng=torch.Generator().manual_seed(3)).Q
    assert torch.equal(first, again)
    with pytest.raises(TypeError, match=r"`rng` is a generator of torch.*pass an integer"):
        lowrank.range_finder(A.numpy(), 5, rng=generator)


def test_seeding_leaves_torch_alone():
    torch = pytest.importorskip("torch")
    A = torch.asarray(gaussian((30, 20), "float32"))
    state = torch.get_rng_state()
    lowrank.svd(A, 5, rng=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_callable_must_return_what_was_asked():
    with pytest.raises(ValueError, match=r"must return 3 columns, got shape"):
        lowrank.range_finder(np.eye(6), 3, test_matrix=lambda *_: np.ones((6, 2)))
