"""A script for galore-torch that changes one import: what its users would write here."""

import functools

import pytest

torch = pytest.importorskip("torch")

from tiny_models import saved_and_loaded  # noqa: E402

from lowrank.optim import LowRank  # noqa: E402

RATE = 0.01


class GaLoreAdamW(LowRank):
    def __init__(self, params, **options):
        super().__init__(params, torch.optim.AdamW, **options)


WAYS = {
    "the class": LowRank,
    "the class first": lambda groups, **options: LowRank(groups, torch.optim.AdamW, **options),
    "a partial": functools.partial(LowRank, optimizer=torch.optim.AdamW),
    "a subclass": GaLoreAdamW,
}


class Model(torch.nn.Module):
    """Matrices wider than the rank that galore-torch's documentation shows, and one narrower."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up = torch.nn.Linear(256, 320)
        self.down = torch.nn.Linear(320, 256)
        self.narrow = torch.nn.Linear(256, 96)
        self.norm = torch.nn.LayerNorm(96)

    def forward(self, x):
        return self.norm(self.narrow(x + self.down(torch.tanh(self.up(x)))))


def param_groups(model, **changes):
    """As that documentation builds them."""
    galore_params = [p for p in model.parameters() if p.ndim == 2]
    ids = {id(p) for p in galore_params}
    non_galore_params = [p for p in model.parameters() if id(p) not in ids]
    options = {"rank": 128, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std", **changes}
    return [{"params": non_galore_params}, {"params": galore_params, **options}]


def train(model, optimizer, steps):
    x = torch.randn(32, 256, generator=torch.Generator().manual_seed(0))
    y = torch.randn(32, 96, generator=torch.Generator().manual_seed(1))
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("way", WAYS)
def test_groups_of_galore_torch_train_with_their_ranks_when_only_the_class_changes(way):
    model = Model()
    optimizer = WAYS[way](param_groups(model), lr=RATE)
    assert isinstance(optimizer, torch.optim.Optimizer)
    first = train(model, optimizer, 1)
    assert train(model, optimizer, 30) < 0.8 * first
    ranks = [tuple(optimizer.state[m.weight]["basis"].shape) for m in (model.up, model.down)]
    assert ranks == [(256, 128), (256, 128)]
    assert "basis" not in optimizer.state[model.narrow.weight]  # 96 rows, fewer than the rank
    assert "basis" not in optimizer.state[model.up.bias]
    group = optimizer.param_groups[1]
    assert (group["refresh_every"], group["scale"]) == (200, 0.25)


@pytest.mark.parametrize("way", WAYS)
def test_swift_10161_a_script_that_was_switched_resumes_from_plain_tensors(way):
    model, other = Model(), Model()
    optimizer = WAYS[way](param_groups(model, update_proj_gap=3), lr=RATE)
    assert optimizer.param_groups[1]["refresh_every"] == 3
    train(model, optimizer, 4)
    other.load_state_dict(model.state_dict())
    again = WAYS[way](param_groups(other, update_proj_gap=3), lr=RATE)
    again.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    assert train(model, optimizer, 4) == train(other, again, 4)


def test_without_what_is_new_here_the_first_step_is_galores():
    """Adam's step in leading singular vectors, a quarter as long, and only within their span.

    galore-torch does not decay by default; its basis is that of the gradient alone.
    """
    (p,) = [torch.nn.Parameter(torch.ones(40, 60, dtype=torch.float64))]
    U, _ = torch.linalg.qr(torch.randn(40, 6, dtype=torch.float64))
    V, _ = torch.linalg.qr(torch.randn(60, 6, dtype=torch.float64))
    p.grad = U * 2.0 ** -torch.arange(6) @ V.mT
    start = p.detach().clone()
    groups = [{"params": [p], "rank": 3, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}]
    plain = {"residual": None, "random_fraction": 0.0, "transport": "keep", "weight_decay": 0.0}
    # more power iterations, as the singular values fall by halves only
    GaLoreAdamW(groups, lr=RATE, power_iterations=12, **plain).step()
    # the first step of Adam is the sign of its gradient
    expected = start - 0.25 * RATE * U[:, :3] @ (U[:, :3].mT @ p.grad).sign()
    assert torch.allclose(p, expected, rtol=0, atol=1e-6)
