"""The options of a parameter group: checks, and how they apply to a parameter."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from lowrank._array import array_namespace
from lowrank._linalg.sharded import Rows
from lowrank._operators.checks import as_count
from lowrank._operators.sketch import gaussian_source
from lowrank.compress import Subspace
from lowrank.optim._sharding import by_rows, local, rows_of

# Options of `compress.Subspace`, with their defaults there.
OF_SUBSPACES: dict[str, Any] = {
    field.name: field.default for field in fields(Subspace) if field.name not in ("index", "basis")
}
DEFAULTS: dict[str, Any] = {
    **OF_SUBSPACES,
    "refresh_every": 200,
    "residual": "scaled",
    "random_fraction": 0.5,
    "transport": "rotate",
    "average": 0.0,
    "scale": 1.0,
    "state_dtype": None,
    "rounding": "nearest",
    "skipped_steps": 0,
}
CHOICES = {
    "residual": ("scaled", None),
    "transport": ("rotate", "keep", "reset"),
    "side": (None, "short", "long", "left", "right"),
    "rounding": ("nearest", "stochastic", "compensated"),
    "state_dtype": (None, "float32", "bfloat16", "float16", "float64"),
}
# Keys of the wrapper in the state of a parameter; all others belong to the inner optimizer.
OWN_STATE = ("basis", "updates", "next_refresh", "residual_norm", "sketch", "began", "compensation")
# Tensors of state whose rows are those of the short side; of others the last dimension is long.
OF_THE_SHORT_SIDE = ("basis", "sketch", "row_sq")
# GaLore's names: https://github.com/jiaweizzhao/GaLore
SIDES = {"std": None, "reverse_std": "long", "left": "left", "right": "right"}
# Other names that are allowed in a group.
OWN_NAMES = ("update_proj_gap", "proj_type", "optimizer")
# Options of the whole optimizer, not of a group.
OF_ALL = ("nonfinite", "temporary_bytes", "budget_bytes")
# Options that the plan of the work depends on; all others are read at each step.
PLANNED = (*OF_SUBSPACES, "state_dtype", "rounding", "update_proj_gap", "proj_type")
# Options of LowRank and AdamW that the other low-rank optimizers reject.
OF_LOWRANK = (
    *("energy", "max_rank", "residual", "random_fraction", "power_iterations", "oversampling"),
    *("transport", "warm_start", "average", "amsgrad", "decoupled_weight_decay"),
)


@dataclass(frozen=True, eq=False)
class Weight:
    """A compressed parameter, as a k×M matrix with the short side first.

    k and M are those of the whole parameter; this process may have only a shard of it. `index` is
    its number among all parameters.
    """

    index: int
    parameter: torch.Tensor
    group: dict[str, Any]
    k: int
    M: int
    left: bool
    policy: Subspace
    rank: int  # or the largest adaptive rank
    state_dtype: str | None
    # How the rows of the weight are sharded, those of its short and of its long side, and the
    # columns of the coordinates in a step.
    blocks: Rows
    along_k: Rows
    along_M: Rows
    columns: Rows
    # The place of its refreshes within `refresh_every`, from 0 to 1.
    offset: float = 0.0
    stacked: bool = False  # whether its gradient is a part of a stack in a step

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of bases and products."""
        half = self.parameter.dtype in (torch.float16, torch.bfloat16)
        return torch.float32 if half else self.parameter.dtype

    @property
    def rounding(self) -> str:
        """How the weight is rounded."""
        return self.group["rounding"] if self.parameter.dtype != self.dtype else "nearest"

    @property
    def kept(self) -> torch.dtype:
        """Dtype in which coordinates are stored; by default that of bases."""
        return self.dtype if self.state_dtype is None else getattr(torch, self.state_dtype)

    @property
    def data(self) -> torch.Tensor:
        """The shard of the parameter on this process."""
        return local(self.parameter).data

    @property
    def gradient(self) -> torch.Tensor:
        return local(self.parameter.grad)

    def shard(self, X: torch.Tensor) -> torch.Tensor:
        """The columns of coordinates (or of other numbers per column) that this process steps."""
        return X if self.along_k.dim is None else self.columns.part(X, -1).contiguous()

    def gather(self, X: torch.Tensor) -> torch.Tensor:
        """The inverse of `shard`: all columns, from all processes."""
        return X if self.along_k.dim is None else self.columns.gather(X.mT).mT

    def _cut(self, name: str, X: Any) -> tuple[Rows, int]:
        """How a tensor of state is sharded over processes, and along which dimension."""
        if not isinstance(X, torch.Tensor) or X.ndim == 0:
            return Rows(), 0
        if name == "compensation":
            return self.blocks, 0
        return (self.along_k, 0) if name in OF_THE_SHORT_SIDE else (self.columns, X.ndim - 1)

    def saved(self, name: str, X: Any) -> Any:
        """A tensor of state for a checkpoint: a DTensor if it is sharded."""
        rows, dim = self._cut(name, X)
        return X if rows.dim is None else rows.wrapped(X, dim)

    def loaded(self, name: str, X: Any) -> Any:
        """The part of a tensor in a checkpoint that belongs to this process."""
        rows, dim = self._cut(name, X)
        if rows.holds(X, dim):
            return by_rows(local(X))
        return rows.part(X.full_tensor() if hasattr(X, "full_tensor") else X, dim)

    def adam_bytes(self, r: int) -> int:
        """Bytes of a basis of r columns, and of two numbers per coordinate."""
        return (r * self.k + 2 * r * self.M) * self.dtype.itemsize

    def drawn(self, columns: int, purpose: str, *, long: bool) -> Any:
        """A Gaussian matrix with M rows if `long`, or k, which depends on seed and index only."""
        numbers = np.random.SeedSequence([self.policy.seed, self.index])
        xp, device = array_namespace(self.data), self.parameter.device
        draw = gaussian_source(numbers, xp, device, purpose=purpose)
        return draw((self.M if long else self.k, columns), self.dtype)

    def oriented(self, X: torch.Tensor) -> torch.Tensor:
        """A tensor with the shape of the parameter, as a k×M matrix; a view if possible."""
        X = X.flatten(1)
        return X if self.left else X.mT


def check_betas(group: dict[str, Any], names: tuple[str, ...]) -> None:
    """Raise unless these options are factors of running means: numbers, or a pair for `betas`."""
    for name in names:
        many, value = name == "betas", group[name]
        factors = tuple(value) if many else (value,)
        if len(factors) != 1 + many or not all(0.0 <= factor < 1.0 for factor in factors):
            kind = "two numbers" if many else "a number"
            raise ValueError(f"`{name}` must be {kind}, at least 0 and below 1, got {value!r}.")


def parse(group: dict[str, Any], betas: tuple[str, ...] = ()) -> dict[str, Any]:
    """The group with GaLore's names translated; an error says which option is wrong.

    `betas` are the names of factors of running means besides `average`.
    """
    group = dict(group)
    if wrong := sorted(set(OF_ALL) & set(group)):
        raise ValueError(f"`{wrong[0]}` is an option of the optimizer, not of a group.")
    if "update_proj_gap" in group:
        group["refresh_every"] = group.pop("update_proj_gap")
    if "proj_type" in group:
        kind = group.pop("proj_type")
        if kind not in SIDES:
            raise ValueError(f"`proj_type` must be one of {', '.join(SIDES)}, got {kind!r}.")
        group["side"] = SIDES[kind]
    chosen = {name: group.get(name, value) for name, value in DEFAULTS.items()}
    for name, choices in CHOICES.items():
        value = chosen[name]
        if name == "state_dtype" and isinstance(value, torch.dtype):
            value = group[name] = str(value).removeprefix("torch.")
        if value not in choices:
            allowed = ", ".join(map(repr, choices))
            raise ValueError(f"`{name}` must be one of {allowed}, got {value!r}.")
    as_count(chosen["refresh_every"], "refresh_every", least=1)
    check_betas({**group, **chosen}, ("average", *betas))
    if wants_compression(chosen):
        _policy(chosen, None, 0)
    return group


def wants_compression(group: dict[str, Any]) -> bool:
    """Whether the group asks for compression."""
    return group["rank"] is not None or group["energy"] is not None


def _policy(group: dict[str, Any], side: Any, index: int) -> Subspace:
    options = {**{name: group[name] for name in OF_SUBSPACES}, "side": side, "index": index}
    if group["rank"] == 0:  # no bases
        options["rank"] = 1
    if options["max_rank"] is None:
        options["max_rank"] = options["rank"]
    if options["energy"] is not None:
        options["rank"] = None
    return Subspace(**options)


def weight_of(
    group: dict[str, Any], parameter: torch.Tensor, index: int, spread: str = ""
) -> Weight | None:
    """How a parameter is compressed; None if it is not, for instance because it saves no memory.

    If it is sharded by rows, `spread` says how its state is: with "gathers" each process has the
    whole state, and gathers the whole gradient. With "shares" processes with rows of the short side
    each step some columns of the coordinates.
    """
    if not wants_compression(group) or parameter.ndim < 2 or not parameter.is_floating_point():
        return None
    m = parameter.shape[0]
    n = parameter.numel() // m if m else 0
    left = {"left": True, "right": False, "long": m > n}.get(group["side"], m <= n)
    k, M = (m, n) if left else (n, m)
    policy = _policy(group, "left" if left else "right", index)
    r = 0 if group["rank"] == 0 else policy.largest_rank(k)
    if k <= r or r * k + 2 * r * M >= 2 * k * M:
        return None
    blocks = rows_of(parameter)
    along_k = blocks if left and spread != "gathers" else Rows(heights=(k,))
    along_M = Rows(heights=(M,)) if left or spread == "gathers" else blocks
    columns = along_k.chunks(M) if left and spread == "shares" else along_M
    sharding = blocks, along_k, along_M, columns
    return Weight(index, parameter, group, k, M, left, policy, r, group["state_dtype"], *sharding)
