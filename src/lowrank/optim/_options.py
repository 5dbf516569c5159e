"""What a parameter group may say about compression, checked, and what it means for a parameter."""

from dataclasses import dataclass
from typing import Any

import torch

from lowrank._check import as_count
from lowrank.compress import Subspace

__all__ = ["DEFAULTS", "Member", "is_asked", "member", "parse"]

DEFAULTS: dict[str, Any] = {
    "rank": None,
    "energy": None,
    "max_rank": None,
    "refresh_every": 200,
    "residual": "scaled",
    "random_fraction": 0.5,
    "transport": "rotate",
    "power_iterations": 1,
    "oversampling": 8,
    "warm_start": False,
    "average": 0.0,
    "scale": 1.0,
    "side": None,
    "state_dtype": None,
    "seed": 0,
    "skipped_steps": 0,
}
CHOICES = {
    "residual": ("scaled", None),
    "transport": ("rotate", "keep", "reset"),
    "side": (None, "short", "long", "left", "right"),
    "state_dtype": (None, "float32", "bfloat16", "float16", "float64"),
}
# GaLore's names: https://github.com/jiaweizhao/GaLore
SIDES = {"std": None, "reverse_std": "long", "left": "left", "right": "right"}


@dataclass(frozen=True)
class Member:
    """A compressed parameter: its place among all, and its matrix, k×M on the short side."""

    index: int
    parameter: torch.Tensor
    k: int
    M: int
    left: bool
    policy: Subspace

    @property
    def rank(self) -> int:
        """The rank, or the cap of an adaptive one."""
        return self.policy.largest_rank(self.k)

    @property
    def dtype(self) -> torch.dtype:
        """That of bases and products."""
        half = self.parameter.dtype in (torch.float16, torch.bfloat16)
        return torch.float32 if half else self.parameter.dtype

    @property
    def gradient(self) -> torch.Tensor:
        assert self.parameter.grad is not None
        return self.parameter.grad

    def oriented(self, X: torch.Tensor) -> torch.Tensor:
        """The k×M matrix of a tensor like the parameter: a view wherever one exists."""
        X = X.flatten(1)
        return X if self.left else X.mT


def parse(group: dict[str, Any]) -> dict[str, Any]:
    """The group with GaLore's names translated; an error says which option is wrong."""
    group = dict(group)
    if "update_proj_gap" in group:
        group["refresh_every"] = group.pop("update_proj_gap")
    if "proj_type" in group:
        kind = group.pop("proj_type")
        if kind not in SIDES:
            message = f"`proj_type` must be one of {', '.join(SIDES)}, got {kind!r}."
            raise ValueError(message)
        group["side"] = SIDES[kind]
    chosen = {name: group.get(name, value) for name, value in DEFAULTS.items()}
    for name, choices in CHOICES.items():
        value = chosen[name]
        if name == "state_dtype" and isinstance(value, torch.dtype):
            value = group[name] = str(value).removeprefix("torch.")
        if value not in choices:
            allowed = ", ".join(map(repr, choices))
            message = f"`{name}` must be one of {allowed}, got {value!r}."
            raise ValueError(message)
    as_count(chosen["refresh_every"], "refresh_every", least=1)
    if not 0.0 <= chosen["average"] < 1.0:
        message = f"`average` must lie between 0 and 1 (and not be 1), got {chosen['average']!r}."
        raise ValueError(message)
    if is_asked(chosen):
        _policy(chosen, None, 0)
    return group


def is_asked(group: dict[str, Any]) -> bool:
    """Whether parameters of the group are to be compressed, where that saves anything."""
    return group["rank"] is not None or group["energy"] is not None


def _policy(group: dict[str, Any], side: Any, index: int) -> Subspace:
    return Subspace(
        rank=None if group["energy"] is not None else group["rank"],
        energy=group["energy"],
        max_rank=group["rank"] if group["max_rank"] is None else group["max_rank"],
        random_fraction=group["random_fraction"],
        power_iterations=group["power_iterations"],
        oversampling=group["oversampling"],
        warm_start=group["warm_start"],
        side=side,
        seed=group["seed"],
        index=index,
    )


def member(group: dict[str, Any], parameter: torch.Tensor, index: int) -> Member | None:
    """How a parameter is compressed; None where it is not, or where nothing would be saved."""
    if not is_asked(group) or parameter.ndim < 2 or not parameter.is_floating_point():
        return None
    m, n = parameter.shape[0], parameter[0].numel() if parameter.shape[0] else 0
    left = m <= n
    if group["side"] in ("left", "right"):
        left = group["side"] == "left"
    elif group["side"] == "long":
        left = not left
    k, M = (m, n) if left else (n, m)
    found = Member(index, parameter, k, M, left, _policy(group, "left" if left else "right", index))
    r = found.rank
    return found if 0 < r < k and r * k + 2 * r * M < 2 * k * M else None
