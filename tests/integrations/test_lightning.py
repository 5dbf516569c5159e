"""Lightning's Trainer with mixed precision and clipping, on a CPU."""

import pytest

torch = pytest.importorskip("torch")
lightning = pytest.importorskip("lightning")

from lowrank.optim import LowRank, LowRankMomentum, LowRankMuon, select  # noqa: E402


class Module(lightning.LightningModule):
    def __init__(self, make):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(16, 64), torch.nn.ReLU(), torch.nn.Linear(64, 16)
        )
        self.make = make

    def training_step(self, batch, _):
        (x,) = batch
        return (self.layers(x) - x).square().mean()

    def configure_optimizers(self):
        return self.make(select(self, rank=4))


@pytest.mark.parametrize("make", [LowRank, LowRankMomentum, LowRankMuon])
@pytest.mark.filterwarnings("ignore")
def test_mixed_precision_and_clipping(tmp_path, make):
    """A scaler whose factor overflows at first, and clipping by norm, which needs it unscaled."""
    from lightning.pytorch.plugins import MixedPrecision  # noqa: PLC0415

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    module = Module(lambda groups: make(groups, lr=0.01))
    data = torch.utils.data.TensorDataset(torch.randn(64, 16))
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=4, gradient_clip_val=0.5, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
    )  # fmt: skip
    start = [p.detach().clone() for p in module.parameters()]
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=16))
    assert scaler.get_scale() < 2.0**30
    assert not any(torch.equal(p, w) for p, w in zip(module.parameters(), start, strict=True))
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())
