"""What parameters that are stepped as one stack share, and what they must not."""

import copy
import math

import pytest

torch = pytest.importorskip("torch")

from test_optim import equal, parameters, peak_bytes, set_gradients, train, weights  # noqa: E402

from lowrank.compress import Subspace  # noqa: E402
from lowrank.optim import LowRank  # noqa: E402

SGD = {"lr": 0.01, "momentum": 0.9}


def runs(cls, steps=6, shapes=((24, 40),) * 3, gradients=None, **options):
    """Weights after some steps; `gradients(step, params)` may change those of a step."""
    params = parameters(shapes)
    opt = LowRank(params, cls, rank=4, refresh_every=3, **options)
    for step in range(steps):
        set_gradients(params, step)
        if gradients is not None:
            gradients(step, params)
        opt.step()
    return params, opt


def close(xs, ys, atol=1e-6):
    return all(torch.allclose(x, y, atol=atol) for x, y in zip(xs, ys, strict=True))


def test_an_inner_optimizer_that_writes_to_gradients_changes_no_residual():
    """As Nesterov's momentum does with foreach."""
    nesterov = {**SGD, "nesterov": True}
    loop, _ = runs(torch.optim.SGD, foreach=False, **nesterov)
    foreach, _ = runs(torch.optim.SGD, foreach=True, **nesterov)
    assert close(loop, foreach)


@pytest.mark.parametrize("transport", ["rotate", "reset"])
def test_members_with_and_without_state_step_together(monkeypatch, transport):
    """One had no gradient before, or has been begun anew: fused optimizers take all or none."""

    def later(step, params):
        if step < 2:
            params[1].grad = None

    ends = [
        runs(torch.optim.SGD, gradients=later, transport=transport, fused=fused, **SGD)[0]
        for fused in (False, True)
    ]
    assert close(*ends)
    monkeypatch.setattr(LowRank, "_temporaries", 10**9)
    alone, opt = runs(torch.optim.SGD, gradients=later, transport=transport, **SGD)
    assert len(set(opt._worker_of.values())) == 3
    assert close(alone, ends[0])


def test_members_have_the_bases_and_scales_of_their_own():
    """Each ends where it would alone, beside others of very different gradients."""

    def scaled(step, params):
        for i, p in enumerate(params):
            p.grad *= 10.0 ** (3 * i - 3)

    together, opt = runs(torch.optim.AdamW, gradients=scaled, lr=0.1)
    assert len(set(opt._worker_of.values())) == 1
    opt = LowRank(params := parameters(((24, 40),) * 3), torch.optim.AdamW, rank=4, lr=0.1,
                  refresh_every=3)  # fmt: skip
    opt.step_in_backward()  # in which everyone is alone
    for step in range(6):
        set_gradients(params, step)
        scaled(step, params)
        gradients = [p.grad for p in params]
        for p in params:
            p.grad = None
        torch.autograd.backward([p.clone() for p in params], gradients)
        opt.step()
    assert close(together, params, atol=1e-5)


def test_adaptive_ranks_and_dtypes_may_differ_among_equal_shapes():
    params = parameters([(48, 60)] * 3)
    params[2].data = params[2].data.double()
    opt = LowRank(params, torch.optim.AdamW, energy=0.99, max_rank=24, lr=0.1, random_fraction=0.0)
    generator = torch.Generator().manual_seed(0)
    for p, rank in zip(params, (3, 20, 3), strict=True):
        low = torch.randn(48, rank, generator=generator), torch.randn(rank, 60, generator=generator)
        p.grad = (low[0] @ low[1]).to(p.dtype)
    opt.step()
    assert [opt.state[p]["basis"].shape[1] for p in params] == [8, 24, 8]
    assert opt.state[params[2]]["exp_avg"].dtype == torch.float64


def test_groups_may_mix_dtypes_at_a_fixed_rank():
    params, singles = parameters([(24, 40)] * 2), parameters([(24, 40)] * 2)
    params[1].data = params[1].data.double()
    opt, single = (LowRank(x, torch.optim.AdamW, rank=4, lr=0.1) for x in (params, singles))
    train(opt, params, 3)
    train(single, singles, 3)
    assert params[1].dtype == opt.state[params[1]]["basis"].dtype == torch.float64
    assert torch.equal(params[0], singles[0])


def test_only_the_state_is_kept_between_steps():
    """Neither stacks nor proxies: what a step leaves behind is what it reports."""
    params = parameters([(256, 512)] * 4)
    set_gradients(params, 0)
    opt = LowRank(params, torch.optim.AdamW, rank=16, lr=0.1)
    opt.step()
    [optimizer] = opt._proxied.values()
    proxies = optimizer.param_groups[0]["params"]
    assert len(proxies) == 4
    assert all(proxy.grad is None and proxy.numel() == 0 for proxy in proxies)
    assert not optimizer.state
    for state in opt.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


def test_an_inner_optimizer_may_put_another_tensor_in_place_of_the_data():
    class Rebinds(torch.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        def step(self, closure=None):  # noqa: ARG002
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.data = p.data - group["lr"] * p.grad

    rebound, _ = runs(Rebinds, lr=0.1)
    usual, _ = runs(torch.optim.SGD, lr=0.1)
    assert close(rebound, usual)


@pytest.mark.parametrize("residual", ["scaled", None])
def test_a_learning_rate_that_is_a_tensor(residual):
    """With weight decay, which it multiplies."""
    options = {"weight_decay": 0.5, "residual": residual}
    number, _ = runs(torch.optim.AdamW, lr=0.1, **options)
    tensor, _ = runs(torch.optim.AdamW, lr=torch.tensor(0.1), foreach=False, **options)
    assert close(number, tensor)


def test_a_tensor_of_the_caller_is_not_written_to():
    lr = torch.tensor(0.01)
    params = parameters([(24, 40), (24, 40), (24,)])
    groups = [{"params": params[:1], "rank": 4, "lr": 0.5}, {"params": params[1:2], "rank": 4},
              {"params": params[2:]}]  # fmt: skip
    opt = LowRank(groups, torch.optim.AdamW, lr=lr)
    train(opt, params, 2)
    assert float(lr) == pytest.approx(0.01)
    assert [float(group["lr"]) for group in opt.param_groups] == pytest.approx([0.5, 0.01, 0.01])


def test_weights_decay_once():
    """Adafactor, too, which is shown the weight and could decay it again."""
    (p,) = parameters([(24, 40)])
    start = p.detach().clone()
    opt = LowRank([p], torch.optim.Adafactor, rank=4, lr=0.1, weight_decay=0.5, residual=None)
    other = parameters([(24, 40)])
    plain = LowRank(other, torch.optim.Adafactor, rank=4, lr=0.1, residual=None)
    for each, params in ((opt, [p]), (plain, other)):
        set_gradients(params, 0)
        each.step()
    assert torch.allclose(p, other[0] - 0.1 * 0.5 * start, atol=1e-6)


def test_half_precision_state_costs_an_optimizer_that_is_shown_the_weight_nothing():
    (p,) = params = parameters([(24, 40)])
    opt = LowRank(
        params, torch.optim.Adafactor, rank=4, lr=1e-6, residual=None, state_dtype=torch.bfloat16
    )
    start = weights(params)
    train(opt, params, 1)
    assert (p.detach() - start[0]).abs().max() < 1e-4


@pytest.mark.parametrize("step", [0, 2, 3])
@pytest.mark.parametrize("size", [1e20, 1e37])
def test_gradients_whose_squares_overflow_are_skipped(size, step):
    """Finite numbers would put Inf into second moments, and NaN into weights at a refresh."""
    params = parameters()
    opt = LowRank(params, torch.optim.AdamW, rank=4, lr=0.1, refresh_every=3)
    train(opt, params, step)
    start, before = weights(params), copy.deepcopy(opt.state_dict()["state"])
    set_gradients(params, step)
    params[1].grad *= size
    opt.step()
    assert equal(params, start)
    assert opt.skipped_steps == 1
    assert before.keys() == opt.state_dict()["state"].keys()
    train(opt, params, 9, start=step)
    assert all(bool(torch.isfinite(p).all()) for p in params)


def test_float16_gradients_beyond_its_range_in_norm_are_taken():
    (p,) = params = parameters([(24, 40)], torch.float16)
    opt = LowRank(params, torch.optim.AdamW, rank=4, lr=0.1)
    p.grad = torch.full_like(p, 3e4)
    start = weights(params)
    opt.step()
    assert opt.skipped_steps == 0
    assert not equal(params, start)


def test_a_gradient_inside_the_basis_has_no_residual():
    """Whose square is a difference that rounding may make negative."""
    (p,) = params = parameters([(24, 40)])
    opt = LowRank(params, torch.optim.AdamW, rank=4, lr=0.1, random_fraction=0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        U = torch.randn(24, 2, generator=generator)
        p.grad = (U if not opt.state else p.grad[:, :2]) @ torch.randn(2, 40, generator=generator)
        opt.step()
        assert math.isfinite(opt.state[p]["residual_norm"])


@pytest.mark.parametrize("shape", [(12, 1025), (1025, 12)])
def test_long_sides_of_any_length(shape):
    (p,) = params = parameters([shape])
    start = p.detach().clone()
    opt = LowRank(params, torch.optim.SGD, rank=4, lr=1.0, residual=None)
    set_gradients(params, 0)
    opt.step()
    Q = opt.state[p]["basis"]
    moved = Q @ (Q.mT @ p.grad) if shape[0] < shape[1] else p.grad @ Q @ Q.mT
    assert torch.allclose(p, start - moved, atol=1e-5)


@pytest.mark.parametrize("size", [1e18, 1e-25])
def test_bases_of_large_and_small_gradients(size):
    """Power iterations square the matrix."""
    G = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    one, two = (Subspace(rank=4).refresh(x).basis for x in (G, size * G))
    assert torch.linalg.norm(one @ one.mT - two @ two.mT) < 1e-3


def test_muon_can_be_wrapped():
    params = parameters([(24, 40)])
    start = weights(params)
    train(LowRank(params, torch.optim.Muon, rank=4, lr=0.1), params, 2)
    assert not equal(params, start)


def test_dtensors_may_be_left_whole_beside_compressed_weights():
    """With plain ones of the same dtype, in one look at the gradients."""
    from torch.distributed.device_mesh import DeviceMesh  # noqa: PLC0415
    from torch.distributed.tensor import distribute_tensor  # noqa: PLC0415

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        plain, spread = parameters([(24, 40), (24, 40)])
        mesh = DeviceMesh("cpu", [0])
        spread = torch.nn.Parameter(distribute_tensor(spread.detach(), mesh))
        groups = [{"params": [plain], "rank": 4}, {"params": [spread]}]
        opt = LowRank(groups, torch.optim.AdamW, lr=0.1)
        set_gradients([plain], 0)
        spread.grad = distribute_tensor(plain.grad.clone(), mesh)
        before = spread.full_tensor().detach().clone()
        opt.step()
        assert not torch.equal(spread.full_tensor(), before)
        spread.grad = distribute_tensor(torch.full((24, 40), math.nan), mesh)
        opt.step()
        assert opt.skipped_steps == 1
    finally:
        torch.distributed.destroy_process_group()


def test_batches_are_as_large_as_their_temporaries_allow(monkeypatch):
    """Below the largest weight, with many weights of one size."""
    monkeypatch.setattr("lowrank.optim._chunks.TEMPORARY", 0)
    params = parameters([(512, 512)] * 6)
    opt = LowRank(params, torch.optim.AdamW, rank=8, lr=1e-3)
    set_gradients(params, 0)
    opt.step()
    assert len(set(opt._worker_of.values())) == 1
    assert peak_bytes(opt.step) < 1.05 * params[0].numel() * 4
