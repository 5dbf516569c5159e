"""The optimizers that are compared: one small function for each, and one table of settings.

Everything the protocol does not fix (its betas, no weight decay, a refresh every 100 steps, no
factor on the update) is left at the default of each package.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from benchmarks.common import libraries
from benchmarks.common.libraries import module_of
from benchmarks.training.allotment import allotted
from benchmarks.training.model import Parts
from benchmarks.training.muon import Orthonormalized
from lowrank.optim import LowRank, LowRankMomentum, LowRankMuon

Optimizers = list[torch.optim.Optimizer]


@dataclass(frozen=True)
class Setting:
    """What the protocol tells every method."""

    lr: float
    seed: int
    betas: tuple[float, float] = (0.9, 0.95)
    refresh_every: int = 100
    corpus: str = "kjv"

    @property
    def adam(self) -> dict[str, Any]:
        return {"lr": self.lr, "betas": self.betas, "weight_decay": 0.0}


@dataclass(frozen=True)
class Method:
    build: Callable[..., Optimizers]
    options: dict[str, Any] = field(default_factory=dict)
    package: str = "torch"
    group: str = "peers"
    few: bool = False  # of the few for a second corpus, or a trial
    drawn: str | None = None  # its label in the plots of few methods
    rate: float | None = None  # the only learning rate, where none is looked for

    def optimizers(self, parts: Parts, setting: Setting) -> Optimizers:
        return self.build(parts, setting, **self.options)


def adamw(parts: Parts, setting: Setting, matrices: float = 1.0) -> Optimizers:
    groups = [{"params": parts.matrices, "lr": matrices * setting.lr}, {"params": parts.rest}]
    return [torch.optim.AdamW(groups, **setting.adam)]


def muon(parts: Parts, setting: Setting, matrices: float = 1.0, **options: Any) -> Optimizers:
    rate = matrices * setting.lr
    return [
        torch.optim.Muon(parts.matrices, lr=rate, weight_decay=0.0, **options),
        torch.optim.AdamW(parts.rest, **setting.adam),
    ]


def orthonormalized(
    parts: Parts, setting: Setting, matrices: float = 1.0, **options: Any
) -> Optimizers:
    """Trials, and what has no package: one loop in :mod:`benchmarks.training.muon`."""
    return [
        Orthonormalized(parts.matrices, matrices * setting.lr, **options),
        torch.optim.AdamW(parts.rest, **setting.adam),
    ]


def adamw8bit(parts: Parts, setting: Setting, matrices: float = 1.0) -> Optimizers:
    cls = module_of("torchao", "optim").AdamW8bit
    groups = [{"params": parts.matrices, "lr": matrices * setting.lr}, {"params": parts.rest}]
    return [cls(groups, **setting.adam)]


def projected(
    parts: Parts, setting: Setting, matrices: float = 1.0, **options: Any
) -> list[dict[str, Any]]:
    """Groups of the kind that galore-torch introduced."""
    told = {"update_proj_gap": setting.refresh_every, "scale": 1.0, "proj_type": "std", **options}
    return [{"params": parts.matrices, "lr": matrices * setting.lr, **told}, {"params": parts.rest}]


def galore(parts: Parts, setting: Setting, **options: Any) -> Optimizers:
    return [libraries.galore(projected(parts, setting, **options), **setting.adam)]


def apollo(parts: Parts, setting: Setting, **options: Any) -> Optimizers:
    cls = module_of("apollo_torch", "apollo").AdamW
    groups = projected(parts, setting, proj="random", scale_type="channel", **options)
    return [cls(groups, **setting.adam)]


def lowrank(parts: Parts, setting: Setting, matrices: float = 1.0, **options: Any) -> Optimizers:
    told = {"refresh_every": setting.refresh_every, "seed": setting.seed, **options}
    told["lr"] = matrices * setting.lr
    groups = [{"params": parts.matrices, **told}, {"params": parts.rest}]
    return [LowRank(groups, torch.optim.AdamW, **setting.adam)]


def by_allotment(parts: Parts, setting: Setting, **options: Any) -> Optimizers:
    """Ranks of :mod:`benchmarks.training.allotment`, for the bytes of a uniform rank 8."""
    told = {"refresh_every": setting.refresh_every, "seed": setting.seed, **options}
    ranks = allotted(setting.corpus, 8)
    groups = [
        {"params": [p], "rank": r, **told} for p, r in zip(parts.matrices, ranks, strict=True)
    ]
    return [LowRank([*groups, {"params": parts.rest}], torch.optim.AdamW, **setting.adam)]


def adafactor(parts: Parts, setting: Setting, matrices: float = 1.0, **options: Any) -> Optimizers:
    """At 0.2 of the rate of the rest, as LowRankMomentum has it by default, or a part of that."""
    cls = module_of("transformers", "optimization").Adafactor
    fixed = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    of_matrices = cls(parts.matrices, lr=0.2 * matrices * setting.lr, **fixed, **options)
    return [of_matrices, torch.optim.AdamW(parts.rest, **setting.adam)]


def momentum(parts: Parts, setting: Setting, matrices: float = 1.0, **options: Any) -> Optimizers:
    told = {"lr": matrices * setting.lr, **options}
    groups = [{"params": parts.matrices, **told}, {"params": parts.rest}]
    return [LowRankMomentum(groups, seed=setting.seed, **setting.adam)]


def low_rank_muon(
    parts: Parts, setting: Setting, matrices: float = 1.0, **options: Any
) -> Optimizers:
    groups = [
        {"params": parts.matrices, "lr": matrices * setting.lr, **options},
        {"params": parts.rest, "rank": None},
    ]
    return [LowRankMuon(groups, seed=setting.seed, **setting.adam)]


def ours(group: str = "ranks", **more: Any) -> Callable[..., Method]:
    """A row of LowRank, given its options; of rank 8 where nothing else is said."""

    def row(**options: Any) -> Method:
        ranks = {} if "energy" in options else {"rank": 8}
        return Method(lowrank, {**ranks, **options}, "lowrank-xp", group, **more)

    return row


def with_rates(
    name: str, method: Method, factors: tuple[float, ...], *, few: bool = False
) -> dict[str, Method]:
    """A method, and the same with matrices at these parts of the rate of the rest."""
    return {name: method} | {
        f"{name}-{factor:g}": replace(
            method, options={**method.options, "matrices": factor}, drawn=None, few=few
        )
        for factor in factors
    }


def factors(**more: Any) -> Callable[..., Method]:
    """A row of LowRankMomentum, given its options."""
    return lambda **options: Method(momentum, {"rank": 8, **options}, "lowrank-xp", **more)


def trial(**options: Any) -> Method:
    """What LowRankMuon does, one thing changed."""
    usual = {"momentum": 8, "longer": None, "rows": True, "matrices": 0.5}
    return Method(orthonormalized, {**usual, **options}, group="trials", rate=1e-2)


# What is changed one at a time is tried at the best learning rate of the default.
OPTION = ours("options", rate=1e-2)
FACTORS = factors(group="factors", rate=1e-2)


# At the best rates of the default.
def MUON(**options: Any) -> Method:
    told = {"matrices": 0.5, **options}
    return Method(low_rank_muon, told, "lowrank-xp", "muon", rate=1e-2)


# What adds up coherently over the steps of a momentum does so √((1 + β)/(1 − β)) times more than
# noise: by that, steps without any are lengthened.
NONE = {"momentum": 0, "longer": (1.95 / 0.05) ** 0.5}
EIGHT = {"momentum": "8 bits"}
LIKE_ADAMW = {"adjust_lr_fn": "match_rms_adamw"}
METHODS: dict[str, Method] = {
    **with_rates("adamw", Method(adamw, few=True, drawn="AdamW"), (0.3,)),
    "adamw-0.1": Method(adamw, {"matrices": 0.1}, few=True, drawn="AdamW, matrices at 0.1 lr"),
    "adamw-0.03": Method(adamw, {"matrices": 0.03}),
    **with_rates("adamw8bit", Method(adamw8bit, {}, "torchao", drawn="AdamW8bit"), (0.1,)),
    **with_rates("adafactor", Method(adafactor, {}, "transformers", drawn="Adafactor"), (0.5,)),
    **with_rates("adafactor-momentum", Method(adafactor, {"beta1": 0.9}, "transformers"), (0.5,)),
    **with_rates("muon", Method(muon, LIKE_ADAMW, few=True, drawn="Muon"), (0.5, 0.25), few=True),
    **with_rates("normuon", Method(orthonormalized, {"rows": True}, drawn="NorMuon"), (0.5, 0.25)),
    **with_rates("muon8bit", Method(orthonormalized, EIGHT), (0.5,)),
    **with_rates("no-momentum", Method(orthonormalized, NONE), (0.5,)),
    **with_rates("no-momentum-rows", Method(orthonormalized, {**NONE, "rows": True}), (0.5,)),
    **with_rates(
        "galore-r8",
        Method(galore, {"rank": 8}, "galore-torch", few=True, drawn="galore-torch, r=8"),
        (0.3,),
    ),
    "galore-r32": Method(galore, {"rank": 32}, "galore-torch"),
    **with_rates(
        "apollo-r8",
        Method(apollo, {"rank": 8}, "apollo-torch", few=True, drawn="apollo-torch, r=8"),
        (0.3,),
    ),
    **with_rates(
        "lowrank-muon-r8",
        Method(low_rank_muon, {}, "lowrank-xp", "muon", few=True, drawn="LowRankMuon, r=8"),
        (0.5, 0.25),
        few=True,
    ),
    **with_rates(
        "lowrank-muon-r0",
        Method(low_rank_muon, {"rank": 0}, "lowrank-xp", "muon", few=True),
        (0.5, 0.25),
        few=True,
    ),
    "lowrank-muon-r1": MUON(rank=1),
    "lowrank-muon-r4": MUON(rank=4),
    "lowrank-muon-r16": MUON(rank=16),
    "lowrank-muon-r32": MUON(rank=32),
    "lowrank-muon-bfloat16": MUON(state_dtype="bfloat16"),
    "momentum-r1": FACTORS(rank=1),
    "momentum-r4": FACTORS(rank=4),
    **with_rates(
        "momentum-r8", factors(group="factors", few=True, drawn="LowRankMomentum, r=8")(), (0.5,)
    ),
    "momentum-r32": FACTORS(rank=32),
    "momentum-r8-every-4": FACTORS(refresh_every=4),
    "momentum-r8-bfloat16": FACTORS(state_dtype="bfloat16"),
    "lowrank-r4": ours()(rank=4),
    **with_rates("lowrank-r8", ours(few=True, drawn="LowRank, r=8")(), (0.3,)),
    "lowrank-r32": ours(drawn="LowRank, r=32")(rank=32),
    "lowrank-allotted": Method(by_allotment, {}, "lowrank-xp", "ranks", rate=1e-2),
    "lowrank-energy-0.8": ours()(energy=0.8, max_rank=32),
    "lowrank-energy-0.95": ours()(energy=0.95, max_rank=32),
    "lowrank-r8-no-residual": OPTION(residual=None),
    "lowrank-r8-random-0": OPTION(random_fraction=0.0),
    "lowrank-r8-random-1": OPTION(random_fraction=1.0),
    "lowrank-r8-galore-like": OPTION(residual=None, random_fraction=0.0),
    "lowrank-r8-keep": OPTION(transport="keep"),
    "lowrank-r8-every-20": OPTION(refresh_every=20),
    "lowrank-r8-power-0": OPTION(power_iterations=0),
    "lowrank-r8-warm-start": OPTION(warm_start=True),
    "lowrank-r8-average-0.98": OPTION(average=0.98),
    "trial-r8": trial(),
    "trial-pays": trial(pays=True),
    "trial-same": trial(longer=1.0),
    "trial-longer-4": trial(longer=4.0),
    "trial-longer-6.2": trial(longer=6.2),
    "trial-at-most-6.2": trial(at_most=6.2),
    "trial-no-rows": trial(rows=False),
    "trial-polar-express": trial(polar_express=True),
}
GROUPS = {
    "peers": "Peers",
    "muon": "LowRankMuon",
    "factors": "LowRankMomentum",
    "ranks": "LowRank around AdamW",
    "options": "LowRank around AdamW, rank 8, one option changed",
    "trials": "LowRankMuon as plain code, rank 8, one thing changed",
}
