"""Checkpoints that go to other numbers of ranks, and what happens when a rank is lost."""

import os
import shutil
import signal
import time

import pytest

torch = pytest.importorskip("torch")

import ranks  # noqa: E402
from processes import World  # noqa: E402
from torch import distributed  # noqa: E402
from torch.distributed import checkpoint  # noqa: E402
from torch.distributed.checkpoint.state_dict import (  # noqa: E402
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.tensor import DTensor, Shard, distribute_tensor  # noqa: E402
from training import around_adamw, assert_alike, momentum, network, sharded, train, weights  # noqa: E402

world = ranks.world
worlds = ranks.worlds
MAKES = pytest.mark.parametrize("make", [momentum, around_adamw])
# of torch, when it reads a checkpoint without a process group
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is ")
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def states(model, optimizer, options=None):
    return {
        "model": get_model_state_dict(model),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }


def load(model, optimizer, path, options=None):
    found = states(model, optimizer, options)
    checkpoint.load(found, checkpoint_id=path)
    set_model_state_dict(model, found["model"])
    set_optimizer_state_dict(model, optimizer, found["optimizer"], options=options)


def other_network(*, spread):
    model = network()
    for p in model.parameters():
        p.data.zero_()
    return sharded(model) if spread else model


def _begins(make, path, steps, options):
    model = sharded(network())
    optimizer = make(model.parameters())
    train(model, optimizer, range(steps), whole=False)
    checkpoint.save(states(model, optimizer, options), checkpoint_id=path)
    # on as many ranks it goes on bit by bit
    again = other_network(spread=True)
    other = make(again.parameters())
    load(again, other, path, options)
    losses = [
        train(*pair, range(steps, steps + 4), whole=False)
        for pair in ((model, optimizer), (again, other))
    ]
    assert torch.equal(*losses)
    return weights(model)


def _goes_on(make, path, steps, options, *, spread=True):
    model = other_network(spread=spread)
    optimizer = make(model.parameters())
    load(model, optimizer, path, options)
    losses = train(model, optimizer, range(steps, steps + 6), whole=not spread)
    return losses, weights(model)


@pytest.mark.parametrize(
    ("make", "options"),
    [(momentum, None), (around_adamw, None), (around_adamw, FLAT)],
    ids=["momentum", "around_adamw", "around_adamw, flattened"],
)
def test_a_checkpoint_of_two_ranks_goes_on_with_one_and_with_four(worlds, tmp_path, make, options):
    steps, alone = 9, network()
    whole = make(alone.parameters())
    train(alone, whole, range(steps), whole=True)
    wanted = train(alone, whole, range(steps, steps + 6), whole=True), weights(alone)
    worlds[2].run(_begins, make, str(tmp_path), steps, options)
    for found in worlds[4].run(_goes_on, make, str(tmp_path), steps, options):
        assert_alike(found, wanted)
    assert_alike(_goes_on(make, str(tmp_path), steps, options, spread=False), wanted)


def _takes_a_whole_state(make, path):
    """One of a single process, of plain tensors; and back."""
    model = other_network(spread=True)
    optimizer = make(model.parameters())
    full = StateDictOptions(full_state_dict=True)
    saved = torch.load(path, weights_only=True)
    set_model_state_dict(model, saved["model"], options=full)
    set_optimizer_state_dict(model, optimizer, saved["optimizer"], options=full)
    losses = train(model, optimizer, range(5, 9), whole=False)
    return losses, get_optimizer_state_dict(model, optimizer, options=full)["state"]


@MAKES
def test_a_state_of_one_process_goes_to_many_and_back(worlds, tmp_path, make):
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer, range(5), whole=True)
    torch.save(states(model, optimizer), tmp_path / "whole.pt")
    wanted = train(model, optimizer, range(5, 9), whole=True)
    (losses, state), *_ = worlds[2].run(_takes_a_whole_state, make, str(tmp_path / "whole.pt"))
    assert_alike(losses, wanted)
    for name, values in get_optimizer_state_dict(model, optimizer)["state"].items():
        assert {key: getattr(value, "shape", ()) for key, value in state[name].items()} == {
            key: getattr(value, "shape", ()) for key, value in values.items()
        }


def _loads_what_another_optimizer_holds(make):
    """State dicts without a detour: of whole tensors into parts, and of parts into a whole."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    numbers = torch.Generator().manual_seed(0)

    def draw():
        shapes = (6, 10), (10, 6), (2, 3), (5,)
        return [torch.randn(shape, generator=numbers, dtype=torch.float64) for shape in shapes]

    start = draw()
    ones = [torch.nn.Parameter(W.clone()) for W in start]
    many = [torch.nn.Parameter(distribute_tensor(W, mesh, [Shard(0)])) for W in start]
    one, other = make(ones), make(many)

    def step(both):
        for p, q, G in zip(ones, many, draw(), strict=True):
            p.grad = G
            q.grad = distribute_tensor(G, mesh, [Shard(0)])
        one.step()
        if both:
            other.step()

    step(both=False)
    other.load_state_dict(one.state_dict())
    for p, q in zip(ones, many, strict=True):
        q.data.copy_(distribute_tensor(p.data, mesh, [Shard(0)]))
    step(both=True)
    one.load_state_dict(other.state_dict())
    step(both=True)
    assert_alike([q.full_tensor() for q in many], [p.detach() for p in ones])
    saved = other.state_dict()
    moments = saved["state"][3]
    moments["exp_avg"] = moments["exp_avg"][:4]
    assert isinstance(moments["exp_avg"], DTensor)
    with pytest.raises(ValueError, match="parameter 3 does not fit: `exp_avg` has shape"):
        other.load_state_dict(saved)


@MAKES
def test_a_state_dict_goes_to_sharded_weights_and_back(world, make):
    world.run(_loads_what_another_optimizer_holds, make)


def _loses_a_rank(path, how):
    model = sharded(network())
    optimizer = momentum(model.parameters())
    train(model, optimizer, range(3), whole=False)
    checkpoint.save(states(model, optimizer), checkpoint_id=path)

    def fail(step):
        if step == 5 and distributed.get_rank() == 1:
            os.kill(os.getpid(), how)

    train(model, optimizer, range(3, 10), whole=False, before=fail)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_lost_ends_the_others_and_leaves_the_checkpoint(tmp_path, how):
    """With an error, at once or when the process group has waited for as long as it was told."""
    patience, path = 5.0, tmp_path / "saved"
    world = World(2, timeout=patience)
    try:
        world.send(_loses_a_rank, str(path), how)
        while not (path / ".metadata").exists():
            time.sleep(0.05)
            assert world.processes[0].is_alive()
        start = time.monotonic()
        done, message = world.answer(0)
        assert not done
        assert "RuntimeError" in message or "DistBackendError" in message
        assert time.monotonic() - start < patience + 10.0
    finally:
        world.close(kill=True)
    model = other_network(spread=False)
    load(model, momentum(model.parameters()), str(path))
    assert all(p.abs().max() > 0 for p in model.parameters())
    for missing in (".metadata", "__1_0.distcp"):
        part = tmp_path / missing.strip("._")
        shutil.copytree(path, part)
        (part / missing).unlink()
        model = other_network(spread=False)
        with pytest.raises((checkpoint.CheckpointException, FileNotFoundError)):
            load(model, momentum(model.parameters()), str(part))
