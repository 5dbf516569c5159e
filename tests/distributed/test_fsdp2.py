"""Weights that FSDP2 shards: steps and checkpoints are those of one process."""

import pytest
from training import around_adamw, assert_alike, momentum, network, sharded, train, weights

STEPS = 30


def _follows_one_process(make, options):
    alone, start = network(), weights(network())
    model = sharded(alone)
    one, many = make(alone.parameters(), **options), make(model.parameters(), **options)
    wanted = train(alone, one, range(STEPS), whole=True)
    found = train(model, many, range(STEPS), whole=False)
    assert_alike(found, wanted)
    assert_alike(weights(model), weights(alone))
    changes = [(p - q).abs().max() for p, q in zip(weights(alone), start, strict=True)]
    assert min(changes) > 1e-2


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (momentum, {}),
        (momentum, {"refresh_every": 3, "side": "long"}),
        (around_adamw, {}),
        (around_adamw, {"average": 0.5, "warm_start": True}),
        (around_adamw, {"rank": None, "energy": 0.6, "max_rank": 0.6, "residual": None}),
    ],
    ids=lambda value: getattr(value, "__name__", None) or "-".join(value) or "default",
)
def test_steps_are_those_of_one_process_with_the_whole_batch(world, make, options):
    world.run(_follows_one_process, make, options)
