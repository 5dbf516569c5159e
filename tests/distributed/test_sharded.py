"""Matrices sharded over processes: the same promises, the same answer on every rank."""

import factorizing
import numpy as np
import pytest
import ranks
from processes import FailedError, World

world = ranks.world
worlds = ranks.worlds
SHAPES = [(103, 40), (40, 103), (30, 30)]


def agree(answers):
    """Every rank has the same answer, up to nothing."""
    assert all(answer == answers[0] for answer in answers[1:])
    return answers[0]


@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_factorizations(world, shape, axis):
    """Of two dtypes: one on two ranks, and the other on four."""
    turn = (SHAPES.index(shape) + axis + (world.count == 4)) % 2
    agree(world.run(factorizing.factorizations, shape, axis, ("float64", "complex64")[turn]))


@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
def test_uneven_and_empty_parts(world, axis):
    shape = (60, 45) if axis == 0 else (45, 60)
    heights = {2: [60, 0], 4: [3, 0, 50, 7]}[world.count]
    if (world.count == 4) == (axis == 0):
        agree(world.run(factorizing.factorizations, shape, axis, "float64", heights))
    else:
        agree(world.run(factorizing.factorizations, shape, axis, "complex128", heights[::-1]))


def test_a_slow_spectrum(world):
    agree(world.run(factorizing.factorizations, (90, 70), 0, "float32", None, "slow"))


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_qr(world, dtype):
    few = {2: [4, 8], 4: [3, 0, 7, 2]}[world.count]
    for shape, heights in (((50, 12), None), ((12, 12), few), ((13, 12), None)):
        agree(world.run(factorizing.qr, shape, dtype, heights))
        for rank in (0, 1):
            agree(world.run(factorizing.qr, shape, dtype, heights, rank))


@pytest.mark.parametrize(
    "rule", [{"rank": 10}, {"rtol": 1e-2}, {"rtol": 1e-3}, {"rank": 10, "power_iterations": 0}]
)
def test_communication_does_not_grow_with_the_long_side(world, rule):
    """Of k columns found: O(k(n + k)) numbers, and the same for four times the rows."""
    n = 80
    short, long = (agree(world.run(factorizing.communication, m, n, rule)) for m in (320, 1280))
    counts, _, _, passes, products, looks = long
    assert set(counts) <= {"all_reduce", "all_gather", "broadcast"}
    # each product with the long side, and with Aᴴ one half of them at least: n numbers a column
    assert counts["all_reduce"] <= products * n
    # the small factors of each QR along the long side, and some numbers
    widest = max(64, products // passes) + 64
    assert counts["all_gather"] <= passes * widest**2 + 8
    # the size of a sample, and whether to stop
    assert counts["broadcast"] <= 2 * looks + 8
    assert counts["all_reduce"] + counts["all_gather"] < 200 * products
    # the ranks may differ by a column, as the test matrices do
    for name in counts:
        assert counts[name] <= 1.3 * short[0][name] + 200


@pytest.mark.parametrize("rule", [{"rank": 4}, {"rtol": 0.1}, {"rtol": 0.1, "norm": "spectral"}])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bad_numbers_on_one_rank_are_an_error_on_all(world, value, rule):
    messages = agree(world.run(factorizing.bad_on_one_rank, value, rule))
    assert len(messages) == 6
    assert all("NaN or Inf" in message for message in messages)


def test_the_callback_of_the_first_rank_stops_all(world):
    assert agree(world.run(factorizing.stopped, 0)) == ("STOPPED", 3)
    status, looks = agree(world.run(factorizing.stopped, 1))
    assert status != "STOPPED"
    assert looks > 3


def test_refused(world):
    raised = agree(world.run(factorizing.refusals))
    expected = {
        "partial": "ValueError: `A` has the placement Partial",
        "stack": "ValueError: a DTensor must be a matrix",
        "test matrix": "ValueError: `test_matrix` is not supported for a DTensor",
        "center": "ValueError: `center` does not support DTensors",
        "qr of columns": "ValueError: `qr` of a DTensor needs a tall matrix",
        "complete": "ValueError: `qr` of a DTensor needs a tall matrix",
        "Q is no DTensor": "TypeError: `Q` must be a DTensor on the mesh of `A`, got Tensor",
        "Q elsewhere": "ValueError: `Q` must have the placements",
        "Q in other parts": "ValueError: `Q` must have the placements",
        "B replicated": "ValueError: `B` must have shape",
        "object": "TypeError: `A` is a DTensor",
        "eigh": "TypeError: `A` is a DTensor",
        "interpolative": "TypeError: `A` is a DTensor",
        "nystrom": "TypeError: `A` is a DTensor",
        "integers": "TypeError: `A` has dtype torch.int32",
    }
    assert set(raised) == set(expected)
    for name, start in expected.items():
        assert raised[name].startswith(start), (name, raised[name])


def test_one_seed_for_all(world):
    results = agree(world.run(factorizing.seeds))
    # an integer and a generator made of it are one seed
    assert len({tuple(S) for S in results}) == 3


def test_ranks_have_test_matrices_of_their_own(world):
    agree(world.run(factorizing.opposite_parts))


def test_replicated(world):
    agree(world.run(factorizing.replicated))


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision(world, name):
    agree(world.run(factorizing.half, name))


def test_replicas_of_shards(worlds):
    *_, message = agree(worlds[4].run(factorizing.two_dimensions))
    assert "may be sharded along one dimension of the mesh only" in message


def test_a_rank_that_dies_ends_the_others():
    world = World(2, timeout=10.0)
    try:
        world.send(factorizing.killed)
        ended, told = world.answer(0)
    finally:
        world.close(kill=True)
    assert not ended
    assert "RuntimeError" in told or "DistBackendError" in told


def test_failures_are_told(worlds):
    with pytest.raises(FailedError, match="ValueError: `qr` of a DTensor"):
        worlds[2].run(factorizing.qr, (5, 12), "float64")
