"""The optimizers that are compared: one small function for each, and one table of settings.

Everything the protocol does not fix (its betas, no weight decay, a refresh every 100 steps, no
factor on the update) is left at the default of each package.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.measuring import module_of
from benchmarks.training.model import Parts
from lowrank.optim import LowRank, LowRankMomentum

Optimizers = list[torch.optim.Optimizer]


@dataclass(frozen=True)
class Setting:
    """What the protocol tells every method."""

    lr: float
    seed: int
    betas: tuple[float, float] = (0.9, 0.95)
    refresh_every: int = 100

    @property
    def adam(self) -> dict[str, Any]:
        return {"lr": self.lr, "betas": self.betas, "weight_decay": 0.0}


@dataclass(frozen=True)
class Method:
    build: Callable[..., Optimizers]
    options: dict[str, Any] = field(default_factory=dict)
    package: str = "torch"
    group: str = "peers"
    quick: bool = False
    drawn: str | None = None  # its label in the plots of few methods

    def optimizers(self, parts: Parts, setting: Setting) -> Optimizers:
        return self.build(parts, setting, **self.options)


def adamw(parts: Parts, setting: Setting, matrices: float = 1.0) -> Optimizers:
    groups = [
        {"params": parts.matrices, "lr": matrices * setting.lr},
        {"params": parts.rest},
    ]
    return [torch.optim.AdamW(groups, **setting.adam)]


def muon(parts: Parts, setting: Setting, **options: Any) -> Optimizers:
    return [
        torch.optim.Muon(parts.matrices, lr=setting.lr, weight_decay=0.0, **options),
        torch.optim.AdamW(parts.rest, **setting.adam),
    ]


def adamw8bit(parts: Parts, setting: Setting) -> Optimizers:
    cls = module_of("torchao", "optim").AdamW8bit
    return [cls([{"params": parts.matrices}, {"params": parts.rest}], **setting.adam)]


def projected(parts: Parts, setting: Setting, **options: Any) -> list[dict[str, Any]]:
    """Groups of the kind that galore-torch introduced."""
    told = {"update_proj_gap": setting.refresh_every, "scale": 1.0, "proj_type": "std", **options}
    return [{"params": parts.matrices, **told}, {"params": parts.rest}]


def galore(parts: Parts, setting: Setting, **options: Any) -> Optimizers:
    cls = module_of("galore_torch", "adamw").AdamW
    groups = projected(parts, setting, **options)
    return [cls(groups, no_deprecation_warning=True, **setting.adam)]


def apollo(parts: Parts, setting: Setting, **options: Any) -> Optimizers:
    cls = module_of("apollo_torch", "apollo").AdamW
    groups = projected(parts, setting, proj="random", scale_type="channel", **options)
    return [cls(groups, **setting.adam)]


def lowrank(parts: Parts, setting: Setting, **options: Any) -> Optimizers:
    told = {"refresh_every": setting.refresh_every, "seed": setting.seed, **options}
    groups = [{"params": parts.matrices, **told}, {"params": parts.rest}]
    return [LowRank(groups, torch.optim.AdamW, **setting.adam)]


def momentum(parts: Parts, setting: Setting, **options: Any) -> Optimizers:
    groups = [{"params": parts.matrices, **options}, {"params": parts.rest}]
    return [LowRankMomentum(groups, seed=setting.seed, **setting.adam)]


def ours(group: str = "options", *, quick: bool = False, drawn: str | None = None, **options: Any):
    """A row of LowRank: rank 8 where nothing else is said."""
    if "energy" not in options:
        options = {"rank": 8, **options}
    return Method(lowrank, options, "lowrank-xp", group, quick, drawn)


METHODS: dict[str, Method] = {
    "adamw": Method(adamw, quick=True, drawn="AdamW"),
    "adamw-0.3": Method(adamw, {"matrices": 0.3}),
    "adamw-0.1": Method(adamw, {"matrices": 0.1}, quick=True, drawn="AdamW, matrices at 0.1 lr"),
    "adamw-0.03": Method(adamw, {"matrices": 0.03}),
    "adamw8bit": Method(adamw8bit, {}, "torchao", drawn="AdamW8bit"),
    "muon": Method(muon, {"adjust_lr_fn": "match_rms_adamw"}, drawn="Muon"),
    "galore-r8": Method(galore, {"rank": 8}, "galore-torch", quick=True, drawn="galore-torch, r=8"),
    "galore-r32": Method(galore, {"rank": 32}, "galore-torch"),
    "apollo-r8": Method(apollo, {"rank": 8}, "apollo-torch", quick=True, drawn="apollo-torch, r=8"),
    # Ranks, at the defaults otherwise.
    "lowrank-r4": ours("ranks", rank=4),
    "lowrank-r8": ours("ranks", quick=True, drawn="LowRank, r=8"),
    "lowrank-r16": ours("ranks", rank=16),
    "lowrank-r32": ours("ranks", rank=32, drawn="LowRank, r=32"),
    "lowrank-energy-0.8": ours("ranks", energy=0.8, max_rank=32),
    "lowrank-energy-0.95": ours("ranks", energy=0.95, max_rank=32),
    # Rank 8, with one option changed (or the two that make GaLore's basis and update).
    "lowrank-r8-no-residual": ours(residual=None),
    "lowrank-r8-random-0": ours(random_fraction=0.0),
    "lowrank-r8-random-1": ours(random_fraction=1.0),
    "lowrank-r8-galore-like": ours(quick=True, residual=None, random_fraction=0.0),
    "lowrank-r8-keep": ours(transport="keep"),
    "lowrank-r8-reset": ours(transport="reset"),
    "lowrank-r8-every-20": ours(refresh_every=20),
    "lowrank-r8-every-200": ours(refresh_every=200),
    "lowrank-r8-power-0": ours(power_iterations=0),
    "lowrank-r8-oversampling-0": ours(oversampling=0),
    "lowrank-r8-warm-start": ours(warm_start=True),
    "lowrank-r8-average-0.9": ours(average=0.9),
    "lowrank-r8-average-0.98": ours(average=0.98),
    "lowrank-r32-random-0": ours("ranks", rank=32, random_fraction=0.0),
}
GROUPS = {"peers": "Peers", "ranks": "LowRank, ranks", "options": "LowRank of rank 8, options"}
