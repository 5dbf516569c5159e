"""torchao's optimizers as the inner one, really compiled, as their users have them."""

import shutil

import pytest

torch = pytest.importorskip("torch")
optim = pytest.importorskip("torchao.optim")

from test_optim import equal, same_state, weights  # noqa: E402
from tiny_models import saved_and_loaded  # noqa: E402

from lowrank.optim import LowRank, select  # noqa: E402

# One shape in the eyes of the inner optimizer, so that it compiles once; 16 × 256 numbers are the
# fewest that torchao stores in 8 bits.
RANK, NARROW, WIDE = 16, 64, 256


def build(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(NARROW, WIDE, bias=False),
        torch.nn.Tanh(),
        torch.nn.Linear(WIDE, NARROW, bias=False),
    )


def optimizer_of(model, cls=optim.AdamW8bit):
    return LowRank(select(model, rank=RANK, refresh_every=3), cls, lr=1e-2)


def train(model, opt, steps):
    for step in steps:
        x = torch.randn(32, NARROW, generator=torch.Generator().manual_seed(step % 2))
        opt.zero_grad()
        loss = (model(x) - x.roll(1, dims=1)).square().mean()
        loss.backward()
        opt.step()
    return loss.item()


def in_parts(opt):
    """The state, with codes and scales in place of tensors of 8 bits; these cannot be copied."""
    found = {}
    for index, state in opt.state_dict()["state"].items():
        found[index] = dict(state)
        for name in ("exp_avg", "exp_avg_sq"):
            tensor = found[index].pop(name)
            for part in ("codes", "scale"):
                found[index][f"{name}.{part}"] = getattr(tensor, part).clone()
    return found


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
# of torch's own compiler, and of its cache, for which torchao's class has no hash
@pytest.mark.filterwarnings("ignore:.*script_method.* is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:OptimState8bit does not implement:UserWarning")
def test_transformers_32839_compiled_8_bit_AdamW_needs_fewer_bytes_trains_and_resumes_bit_for_bit():
    model = build()
    opt = optimizer_of(model)
    first = train(model, opt, range(1))
    assert opt.state[model[0].weight]["exp_avg"].codes.dtype == torch.uint8
    train(model, opt, range(1, 7))
    saved = saved_and_loaded({"model": model.state_dict(), "opt": opt.state_dict()})
    start = weights(model.parameters())
    assert train(model, opt, range(7, 16)) < 0.8 * first
    assert not any(torch.equal(p, w) for p, w in zip(model.parameters(), start, strict=True))

    other = build(seed=1)
    another = optimizer_of(other)
    other.load_state_dict(saved["model"])
    another.load_state_dict(saved["opt"])
    train(other, another, range(7, 16))
    assert equal(model.parameters(), other.parameters())
    same_state(in_parts(opt), in_parts(another))

    for group in opt.param_groups:  # as a schedule does, though torchao has it in a tensor
        group["lr"] = 0.0
    train(model, opt, range(2))
    assert equal(model.parameters(), other.parameters())

    twin = build()
    whole = optimizer_of(twin, torch.optim.AdamW)
    train(twin, whole, range(1))
    basis, moments = 2 * 4 * RANK * NARROW, 2 * 2 * 4 * RANK * WIDE
    assert whole.state_bytes() == pytest.approx(basis + moments, abs=50)
    # four moments, each with a scale for 256 numbers, and a table of the 256 values of a code
    extra = 4 * (4 * RANK * WIDE // 256 + 4 * 256)
    assert opt.state_bytes() == pytest.approx(basis + moments // 4 + extra, abs=50)
    assert opt.state_bytes() < 0.4 * whole.state_bytes()


def test_galore_defect_4_two_optimizers_of_8_bits_share_nothing_after_loading():
    with torch.compiler.set_stance("force_eager"):
        model, other = build(), build()
        opt, another = optimizer_of(model), optimizer_of(other)
        train(model, opt, range(2))
        another.load_state_dict(opt.state_dict())
        before = in_parts(opt)
        train(other, another, range(2, 4))
        same_state(in_parts(opt), before)
