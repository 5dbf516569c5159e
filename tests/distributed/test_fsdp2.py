"""Weights that FSDP2 shards: steps are those of one process that holds them whole."""

import copy

import pytest

torch = pytest.importorskip("torch")

import ranks  # noqa: E402
from torch import distributed  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor  # noqa: E402
from training import (  # noqa: E402
    around_adamw,
    assert_alike,
    gathered,
    momentum,
    muon,
    network,
    sharded,
    train,
    weights,
)

from lowrank._linalg.sharded import Rows  # noqa: E402
from lowrank.optim import LowRank, LowRankMomentum, select  # noqa: E402

world = ranks.world
worlds = ranks.worlds
MAKES = pytest.mark.parametrize("make", [momentum, muon, around_adamw])


def _follows_one_process(make, steps, options):
    alone, start = network(), weights(network())
    model = sharded(alone)
    one, many = make(alone.parameters(), **options), make(model.parameters(), **options)
    wanted = train(alone, one, range(steps), whole=True)
    assert_alike(train(model, many, range(steps), whole=False), wanted)
    assert_alike(weights(model), weights(alone))
    changes = [(p - q).abs().max() for p, q in zip(weights(alone), start, strict=True)]
    assert min(changes) > 1e-2


@MAKES
def test_steps_are_those_of_one_process_with_the_whole_batch(world, make):
    world.run(_follows_one_process, make, 15, {})


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (momentum, {"refresh_every": 3, "side": "long"}),
        (muon, {"rank": 0}),
        (around_adamw, {"average": 0.5, "warm_start": True, "refresh_every": 4}),
        (around_adamw, {"rank": None, "energy": 0.6, "max_rank": 0.6, "residual": None}),
    ],
    ids=["other sides", "no momentum", "averages", "adaptive ranks"],
)
def test_options_mean_what_they_mean_in_one_process(worlds, make, options):
    worlds[4].run(_follows_one_process, make, 9, options)


def _replicas_are_sharded():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    for make in (momentum, muon, around_adamw):
        alone = network()
        model = sharded(alone, mesh)
        train(alone, make(alone.parameters()), range(8), whole=True)
        train(model, make(model.parameters()), range(8), whole=False)
        assert_alike(weights(model), weights(alone))


def test_steps_of_sharded_replicas(worlds):
    worlds[4].run(_replicas_are_sharded)


def _half_precision():
    """Rounding to bfloat16 once a step leaves no more than a few of its units."""
    for make in (momentum, muon, around_adamw):
        alone = network().bfloat16()
        model = sharded(alone)
        one, many = make(alone.parameters()), make(model.parameters())
        for p, q in zip(alone.parameters(), model.parameters(), strict=True):
            G = torch.randn(p.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
            p.grad, q.grad = G, distribute_tensor(G, q.device_mesh, q.placements)
        one.step()
        many.step()
        torch.testing.assert_close(weights(model), weights(alone), rtol=1e-2, atol=1e-2)


def test_weights_of_half_precision(worlds):
    worlds[4].run(_half_precision)


def _are_on_every_rank_what_they_should_be(make):
    """The same where they are whole; and in bytes: of each its rows, or its columns."""
    model = sharded(network())
    optimizer = make(model.parameters())
    train(model, optimizer, range(9), whole=False)
    saved, size = optimizer.state_dict()["state"], 8
    needed, compressed = 0, 0
    for index, (p, row) in enumerate(zip(model.parameters(), optimizer.report().rows, strict=True)):
        state = optimizer.state[p]
        if row.rank is None:
            needed += row.bytes
            continue
        compressed += 1
        left, r = p.shape[0] <= p[0].numel(), row.rank
        rows, columns = p.to_local().flatten(1).shape
        k, M = (rows, columns) if left else (columns, rows)
        if make is momentum:
            moments = r * M + M + k
        elif make is muon:  # whole on every process
            rows, columns = p.shape[0], p[0].numel()
            k, M = (rows, columns) if left else (columns, rows)
            moments = r * M + rows + 1
        else:  # stepped by columns, whichever side is cut
            cut = torch.arange(p[0].numel()).chunk(distributed.get_world_size()) if left else []
            cut = [len(part) for part in cut] + [0] * distributed.get_world_size()
            moments = 2 * r * (cut[distributed.get_rank()] if left else M) + 1
        needed += (r * k + moments) * size
        needed += 4 if "step" in state and isinstance(state["step"], torch.Tensor) else 0
        for name, value in state.items():
            whole = saved[index][name]
            if isinstance(whole, DTensor):
                assert isinstance(value, torch.Tensor)
                sides = p.shape[0], p[0].numel()
                assert whole.shape[0 if name == "basis" else -1] in sides
            elif isinstance(value, torch.Tensor):
                assert all(torch.equal(value, other) for other in gathered(value))
    assert compressed == 8
    assert optimizer.state_bytes() == needed == optimizer.report().bytes
    return optimizer.report().uncompressed_bytes


@MAKES
def test_state_on_the_ranks(world, make):
    found = world.run(_are_on_every_rank_what_they_should_be, make)
    count = 2 if make is not muon else 1  # AdamW's for vectors
    whole = sum((count if p.ndim > 1 else 2) * p.numel() * 8 for p in network().parameters())
    assert whole <= sum(found) < whole + 4 * 8 * 8 * len(found)  # and the counts of steps


def _skips_together(make, nonfinite):
    model = sharded(network())
    optimizer = make(model.parameters(), nonfinite=nonfinite)
    train(model, optimizer, range(2), whole=False)
    before, state = weights(model), copy.deepcopy(optimizer.state_dict()["state"])

    def spoil(step):
        if distributed.get_rank() == 0:  # the one that has a part of everything
            next(model.parameters()).grad.to_local()[0, 0] = torch.nan

    if nonfinite == "raise":
        with pytest.raises(FloatingPointError, match=r": 0\.$"):
            train(model, optimizer, range(2, 3), whole=False, before=spoil)
        optimizer.zero_grad()
    else:
        train(model, optimizer, range(2, 3), whole=False, before=spoil)
    assert optimizer.skipped_steps == (nonfinite == "skip")
    for old, new in zip(before, weights(model), strict=True):
        assert torch.equal(old, new)
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            old = state[index][name]
            if isinstance(value, DTensor):
                value, old = value.to_local(), old.to_local()  # noqa: PLW2901
            assert torch.equal(torch.as_tensor(old), torch.as_tensor(value))
    train(model, optimizer, range(3, 5), whole=False)
    assert all(torch.isfinite(p).all() for p in weights(model))


@MAKES
@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_a_gradient_that_is_not_finite_on_one_rank_stops_all(worlds, make, nonfinite):
    worlds[2].run(_skips_together, make, nonfinite)


def _steps_in_the_backward_pass(make):
    """Which FSDP2 tells when it has averaged a gradient; and a NaN skips a parameter everywhere."""
    ordinary, model = sharded(network()), sharded(network(), by_layer=True)
    theirs, ours = make(ordinary.parameters()), make(model.parameters())
    losses = train(ordinary, theirs, range(10), whole=False)
    with ours.step_in_backward():

        def is_gone(step):
            assert all(p.grad is None for p in model.parameters())

        assert_alike(train(model, ours, range(10), whole=False, before=is_gone), losses)
        assert_alike(weights(model), weights(ordinary))
        assert ours.skipped_steps == 0
    first, *_, last = model.parameters()
    before = first.full_tensor(), last.full_tensor()

    def spoil(p):
        if distributed.get_rank() == 0:
            p.grad.to_local()[0, 0] = torch.nan

    handle = first.register_post_accumulate_grad_hook(spoil)
    with ours.step_in_backward():
        train(model, ours, range(10, 11), whole=False)
    handle.remove()
    assert ours.skipped_steps == 1
    assert torch.equal(before[0], first.full_tensor())
    assert not torch.equal(before[1], last.full_tensor())


@MAKES
def test_steps_in_the_backward_pass(worlds, make):
    worlds[2].run(_steps_in_the_backward_pass, make)


def _takes_gradients_cut_in_another_way(make):
    """As autograd leaves them: what the inputs' places make of them, and sums yet to be made."""
    count, rank = distributed.get_world_size(), distributed.get_rank()
    mesh = init_device_mesh("cpu", (count,))
    replicas = init_device_mesh("cpu", (count, 1))
    numbers = torch.Generator().manual_seed(0)
    for shape in ((6, 10), (10, 6), (10,)):
        W, *parts = torch.randn(1 + count, *shape, generator=numbers, dtype=torch.float64).unbind()
        places = (mesh, [Shard(0)]), (replicas, [Replicate(), Shard(0)])
        for on, where in places:
            alone = torch.nn.Parameter(W.clone())
            one = make([alone])
            spread = torch.nn.Parameter(distribute_tensor(W, on, where))
            many = make([spread])
            for _ in range(2):
                alone.grad = sum(parts)
                spread.grad = DTensor.from_local(parts[rank], on, [Partial(), *where[1:]])
                one.step()
                many.step()
            assert_alike(spread.full_tensor(), alone.detach())
    X = torch.randn(4 * count, 10, generator=numbers, dtype=torch.float64)
    alone = torch.nn.Parameter(torch.ones(6, 10, dtype=torch.float64))
    spread = torch.nn.Parameter(distribute_tensor(alone.data, mesh, [Shard(0)]))
    one, many = make([alone]), make([spread])
    many.step_in_backward()
    for p, x in ((alone, X), (spread, distribute_tensor(X, mesh, [Shard(0)]))):
        torch.nn.functional.linear(x, p).square().sum().backward()
    one.step()
    assert spread.grad is None
    assert_alike(spread.full_tensor(), alone.detach())


@MAKES
def test_gradients_that_are_not_cut_as_their_weights(worlds, make):
    worlds[2].run(_takes_gradients_cut_in_another_way, make)


def _waits_for_no_gradient(make):
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    W = torch.ones(6, 10, dtype=torch.float64)
    spread = torch.nn.Parameter(distribute_tensor(W, mesh, [Shard(0)]))
    own = torch.nn.Parameter(W.clone())
    optimizer = make([spread, own])
    if distributed.get_rank() == 0:
        own.grad = torch.ones_like(own)
    optimizer.step()
    assert torch.equal(spread.full_tensor(), W)
    assert torch.equal(own, W) == (distributed.get_rank() != 0)


@MAKES
def test_a_rank_without_a_gradient_is_not_waited_for(worlds, make):
    """Of a weight that each rank has for itself."""
    worlds[2].run(_waits_for_no_gradient, make)


def _adapts_to_small_and_large():
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for shape in ((32, 48), (48, 32)):
        G = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for size in (1e-30, 1.0, 1e17):
            alone, spread = (
                torch.zeros(shape),
                distribute_tensor(torch.zeros(shape), mesh, [Shard(0)]),
            )
            found = []
            for W, one in (
                (alone, G * size),
                (spread, distribute_tensor(G * size, mesh, [Shard(0)])),
            ):
                p = torch.nn.Parameter(W)
                optimizer = around_adamw([p], rank=None, energy=0.9, max_rank=0.6)
                p.grad = one
                optimizer.step()
                found.append(optimizer.report().rows[0].rank)
            assert found[0] == found[1] > 8, (size, found)


def test_adaptive_ranks_do_not_depend_on_the_size_of_gradients(worlds):
    worlds[2].run(_adapts_to_small_and_large)


def _refuses():
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    square = init_device_mesh("cpu", (2, distributed.get_world_size() // 2))
    W = torch.zeros(24, 40)

    def on(mesh, *placements):
        return torch.nn.Parameter(distribute_tensor(W, mesh, placements))

    unfit = [on(mesh, Shard(1)), on(mesh, Replicate()), on(square, Shard(0), Shard(0))]
    unfit.append(on(square, Shard(0), Shard(1)))
    unfit.append(torch.nn.Parameter(DTensor.from_local(W, mesh, [Partial()])))
    fit = on(mesh, Shard(0))
    with torch.device("meta"):
        model = fully_shard(torch.nn.Linear(40, 24), mesh=mesh)
    assert model.weight.is_meta
    LowRankMomentum(model.parameters(), rank=4)
    for p in unfit:
        with pytest.raises(TypeError, match=r"DTensor with placements .* cut by rows"):
            LowRankMomentum([p], rank=4)
        optimizer = LowRankMomentum([fit], rank=4)
        with pytest.raises(TypeError, match="DTensor"):
            optimizer.add_param_group({"params": [p]})
        assert len(optimizer.param_groups) == 1
        LowRank([p], torch.optim.AdamW)  # which leaves it whole
        assert select(torch.nn.ParameterList([p]), rank=4, include=".")[0]["rank"] == 4
    height = 24 // distributed.get_world_size() + (-1, 1)[distributed.get_rank() % 2]
    uneven = DTensor.from_local(
        W[:height], mesh, [Shard(0)], run_check=False, shape=W.shape, stride=W.stride()
    )
    with pytest.raises(TypeError, match=rf"has {height}, and not 6, as torch\.chunk cuts them"):
        LowRankMomentum([torch.nn.Parameter(uneven)], rank=4)
    for inner in (torch.optim.Adafactor, torch.optim.Muon):
        with pytest.raises(TypeError, match=f"{inner.__name__} is not elementwise"):
            LowRank([fit], inner, rank=4, lr=0.1)
    for inner in (torch.optim.SGD, torch.optim.NAdam, torch.optim.RMSprop, torch.optim.Adagrad):
        LowRank([fit], inner, rank=4, lr=0.1)


def test_what_is_refused(worlds):
    worlds[4].run(_refuses)


def _is_orthonormal():
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    numbers = torch.Generator().manual_seed(0)
    for k, b in ((40, 6), (13, 4), (5, 5), (9, 7), (3, 1)):
        full = torch.randn(3, k, b, generator=numbers, dtype=torch.float64)
        full[1] = full[1, :, :1] @ full[1, :1, :]  # of rank one
        full[2, : k // 2] = 0.0
        shards = Rows(mesh, (Shard(0),)).chunks(k)
        Q = shards.gather(shards.orthonormalize(shards.part(full)).Q)
        eye = torch.eye(b, dtype=torch.float64).expand(3, b, b)
        assert_alike(Q.mT @ Q, eye, rtol=1e-13)
        assert_alike(Q @ (Q.mT @ full), full, rtol=1e-13)
        assert all(torch.equal(Q, other) for other in gathered(Q))


def test_bases_of_matrices_cut_by_rows(world):
    """Of fewer rows than ranks or columns, of rank one, and with blocks of zeros, too."""
    world.run(_is_orthonormal)
