"""Weights that are whole on every rank: DistributedDataParallel averages their gradients."""

import copy

import pytest

torch = pytest.importorskip("torch")

import ranks  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402
from training import around_adamw, assert_alike, gathered, momentum, network, train, weights  # noqa: E402

worlds = ranks.worlds


def _stays_the_same(make):
    alone = network()
    model = DistributedDataParallel(copy.deepcopy(alone))
    optimizer = make(model.parameters())
    wanted = train(alone, make(alone.parameters()), range(12), whole=True)
    assert_alike(train(model, optimizer, range(12), whole=False), wanted)
    assert_alike(weights(model), weights(alone))
    values = [value for state in optimizer.state.values() for value in state.values()]
    for value in (*weights(model), *(v for v in values if isinstance(v, torch.Tensor))):
        assert all(torch.equal(value, other) for other in gathered(value))
    with pytest.raises(RuntimeError, match="before it is averaged"):
        optimizer.step_in_backward()


@pytest.mark.parametrize("make", [momentum, around_adamw])
def test_weights_and_states_are_the_same_on_every_rank(worlds, make):
    worlds[2].run(_stays_the_same, make)
