"""The optimizers on every device that torch has here, the CPU's being the default device."""

import copy
import io

import pytest

torch = pytest.importorskip("torch")

from test_optim import SHAPES  # noqa: E402

from lowrank.optim import LowRank, LowRankMomentum, LowRankMuon  # noqa: E402

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
MAKERS = {
    "LowRank(AdamW, foreach)": lambda p: LowRank(p, torch.optim.AdamW, rank=4, foreach=True),
    "LowRank(AdamW, fused)": lambda p: LowRank(p, torch.optim.AdamW, rank=4, fused=True),
    "LowRank(AdamW), no residual": lambda p: LowRank(p, torch.optim.AdamW, rank=4, residual=None),
    "LowRank(SGD), adaptive": lambda p: LowRank(p, torch.optim.SGD, energy=0.9, momentum=0.9),
    "LowRank(AdamW), average": lambda p: LowRank(p, torch.optim.AdamW, rank=4, average=0.9),
    "LowRank(AdamW), warm start": lambda p: LowRank(p, torch.optim.AdamW, rank=4, warm_start=True),
    "LowRankMomentum": lambda p: LowRankMomentum(p, rank=4),
    "LowRankMuon": lambda p: LowRankMuon(p, rank=4),
    "LowRankMomentum, every 3": lambda p: LowRankMomentum(p, rank=4, refresh_every=3),
}
DTYPES = {"float32": 1e-4, "bfloat16": 0.02, "float64": 1e-10}


def problem(device, dtype):
    """Parameters, and a function that gives them the gradients of ½‖W − target‖² and returns it."""
    generator = torch.Generator().manual_seed(0)

    def draw(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    params = [torch.nn.Parameter(draw(shape)) for shape in SHAPES]
    targets = [draw(shape) for shape in SHAPES]

    def loss():
        total = 0.0
        for p, target in zip(params, targets, strict=True):
            p.grad = (p.detach() - target).clone()
            total += 0.5 * float(torch.sum(p.grad.double() ** 2))
        return total

    return params, loss


def run(opt, loss, steps):
    for group in opt.param_groups:
        group["lr"] = 0.05
        if not isinstance(opt, LowRankMuon) and group["refresh_every"] > 3:
            group["refresh_every"] = 3
    for _ in range(steps):
        loss()
        opt.step()
    return loss()


def tensors(opt):
    for state in opt.state_dict()["state"].values():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and name != "step":
                yield name, value


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("device", DEVICES)
def test_steps_lower_the_loss_and_leave_everything_on_the_device(device, name, dtype):
    params, loss = problem(device, getattr(torch, dtype))
    first = loss()
    opt = MAKERS[name](params)
    assert run(opt, loss, 30) < 0.9 * first
    assert all(p.device.type == device and p.dtype == getattr(torch, dtype) for p in params)
    assert all(value.device.type == device for _, value in tensors(opt))
    assert all(bool(torch.isfinite(p).all()) for p in params)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("device", DEVICES)
def test_the_same_steps_are_the_same_bits(device, name):
    found = []
    for _ in range(2):
        params, loss = problem(device, torch.float32)
        run(MAKERS[name](params), loss, 8)
        found.append(params)
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("device", DEVICES)
def test_a_state_that_comes_from_the_cpu_goes_on_as_there(device, name, dtype):
    """Without a refresh, which draws other numbers on another device."""
    here, loss_here = problem("cpu", getattr(torch, dtype))
    opt_here = MAKERS[name](here)
    run(opt_here, loss_here, 9)
    there, loss_there = problem(device, getattr(torch, dtype))
    with torch.no_grad():
        for p, q in zip(there, here, strict=True):
            p.copy_(q)
    file = io.BytesIO()
    torch.save(opt_here.state_dict(), file)
    file.seek(0)
    opt_there = MAKERS[name](there)
    opt_there.load_state_dict(torch.load(file, weights_only=True))
    assert all(value.device.type == device for _, value in tensors(opt_there))
    for opt, loss in ((opt_here, loss_here), (opt_there, loss_there)):
        for state in opt.state.values():
            if "next_refresh" in state:
                state["next_refresh"] = 10**9
        loss()
        opt.step()
    for p, q in zip(there, here, strict=True):
        difference = torch.linalg.vector_norm(p.detach().cpu().double() - q.detach().double())
        assert difference <= DTYPES[dtype] * torch.linalg.vector_norm(q.detach().double())


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("device", DEVICES)
def test_a_bad_gradient_skips_a_step(device, name):
    params, loss = problem(device, torch.float32)
    opt = MAKERS[name](params)
    run(opt, loss, 4)
    before, state = [p.detach().clone() for p in params], copy.deepcopy(opt.state_dict()["state"])
    loss()
    params[1].grad[3, 5] = float("nan")
    opt.step()
    assert opt.skipped_steps == 1
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    for old, new in zip(state.values(), opt.state_dict()["state"].values(), strict=True):
        for key, value in old.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(new[key])), key


@pytest.mark.parametrize("name", ["LowRank(AdamW, foreach)", "LowRankMomentum", "LowRankMuon"])
@pytest.mark.parametrize("device", DEVICES)
def test_steps_in_backward_are_the_ordinary_ones(device, name):
    found = []
    for in_backward in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(24, 40), torch.nn.Tanh(), torch.nn.Linear(40, 24)
        ).to(device)
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(16, 24, generator=generator).to(device)
        opt = MAKERS[name](model.parameters())
        hooks = opt.step_in_backward() if in_backward else None
        for _ in range(6):
            (model(x) - x).square().mean().backward()
            opt.step()
            opt.zero_grad()
        if hooks is not None:
            hooks.close()
        found.append([p.detach().clone() for p in model.parameters()])
    for p, q in zip(*found, strict=True):
        # a GPU makes the bases of a stack orthonormal together, and rounds otherwise
        torch.testing.assert_close(p, q, rtol=0, atol=0 if device == "cpu" else 1e-5)
