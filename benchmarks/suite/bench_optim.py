"""Steps and refreshes of the optimizer, as ratios to what it stands beside, and its state."""

import sys
from importlib import import_module
from pathlib import Path

from .common import is_here, medians

TESTS = Path(__file__).parents[2] / "tests"
WIDTH, RANK = 256, 32


def block(device):
    torch = import_module("torch")
    torch.manual_seed(0)
    model = torch.nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, device=device)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    return model


class Steps:
    params = (("torch float32", "cuda float32"), ("scaled", None))
    param_names = ("kind", "residual")

    def setup(self, kind, residual):
        if not is_here(kind):
            raise NotImplementedError
        torch, optim = import_module("torch"), import_module("lowrank.optim")
        device = "cuda" if kind.startswith("cuda") else "cpu"
        one, two = block(device), block(device)
        self.plain = torch.optim.AdamW(one.parameters(), foreach=True)
        groups = optim.select(two, rank=RANK, residual=residual)
        self.ours = optim.LowRank(groups, torch.optim.AdamW, foreach=True)
        self.plain.step()
        self.ours.step()

    def track_over_adamw(self, kind, residual):
        ours, plain = medians(kind, self.ours.step, self.plain.step)
        return ours / plain

    def track_share_of_state(self, kind, residual):
        return self.ours.state_bytes() / self.ours.report().uncompressed_bytes

    track_over_adamw.unit = track_share_of_state.unit = "of AdamW's"


class Refresh:
    params = (("torch float32", "cuda float32"),)
    param_names = ("kind",)

    def setup(self, kind):
        if not is_here(kind):
            raise NotImplementedError
        torch = import_module("torch")
        self.G = torch.randn(512, 512, device="cuda" if kind.startswith("cuda") else "cpu")
        self.policy = import_module("lowrank.compress").Subspace(rank=64, random_fraction=0.5)

    def track_of_svd(self, kind):
        svd = import_module("torch").linalg.svd
        ours, full = medians(kind, lambda: self.policy.refresh(self.G), lambda: svd(self.G))
        return ours / full

    track_of_svd.unit = "of the time of an SVD"


class OnAGpu:
    """A step of a Llama of 130 million, counted on tensors that only say they are on a GPU."""

    params = (("LowRank", "LowRankMomentum", "LowRankMuon"),)
    param_names = ("optimizer",)

    def setup_cache(self):
        if not is_here("torch"):
            return {}
        sys.path.insert(0, str(TESTS))
        torch, pretended = import_module("torch"), import_module("pretended")
        optim, found = import_module("lowrank.optim"), {}
        for name, options in (
            ("LowRank", {"rank": 192, "refresh_every": 10**6}),
            ("LowRankMomentum", {"rank": 8}),
            ("LowRankMuon", {"rank": 8}),
        ):
            with pretended.without_numbers():
                matrices, others = pretended.llama_of_130_million(torch.bfloat16)
                groups = [{"params": matrices}, {"params": others, "rank": None}]
                opt = getattr(optim, name)(groups, foreach=True, **options)
                found[name] = pretended.launched_by_a_step(opt)
        return found

    def track_operations(self, found, optimizer):
        return found.get(optimizer, (float("nan"),) * 2)[0]

    def track_reads(self, found, optimizer):
        return found.get(optimizer, (float("nan"),) * 2)[1]

    track_operations.unit = "operations launched"
    track_reads.unit = "reads by the host"
