"""Steps of orthonormalized gradients, with what may be kept of a momentum, one matrix at a time.

Plain code, to try what :class:`lowrank.optim.LowRankMuon` might have been: a momentum in full, in 8
bits, as factors of low rank, or none; steps outside of its basis lengthened by a number that is
given or measured; the part that factors lose dropped, or paid out at once; a mean of squares for
each row (Z. Li et al., NorMuon, 2025, arXiv:2510.05491), or none.
"""

import math
from typing import Any

import torch

from benchmarks.common.libraries import module_of

# K. Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024.
JORDAN = ((3.4445, -4.7750, 2.0315),) * 5
# N. Amsel et al., The Polar Express, 2025, arXiv:2505.16932, Algorithm 1 (five steps, ℓ = 1e-3).
POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)


def newton_schulz(G: torch.Tensor, coefficients: Any) -> torch.Tensor:
    X = G.bfloat16()
    X = X / X.norm().clamp(min=1e-7)
    for a, b, c in coefficients:
        A = X @ X.mT
        X = a * X + torch.addmm(A, A, A, beta=b, alpha=c) @ X
    return X.to(G.dtype)


class Orthonormalized(torch.optim.Optimizer):
    """`momentum` is "full", "8 bits", or a rank; `longer` a number, or None to measure it."""

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        momentum: str | int = "full",
        beta: float = 0.95,
        longer: float | None = 1.0,
        at_most: float = math.inf,
        pays: bool = False,
        rows: bool = False,
        beta2: float = 0.95,
        scale: float = 0.2,
        weight_decay: float = 0.0,
        polar_express: bool = False,
    ) -> None:
        options = {
            name: value for name, value in locals().items() if name not in ("self", "params")
        }
        del options["__class__"]
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                left = p.shape[0] <= p.shape[1]
                G = p.grad if left else p.grad.mT
                O = self._direction(G.float(), self.state[p], group)
                O = O if left else O.mT
                if group["rows"]:
                    O = _normalized(O, self.state[p], group["beta2"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_((group["lr"] * group["scale"] * max(p.shape) ** 0.5 * O).to(p.dtype))

    def _direction(self, G: torch.Tensor, state: Any, group: dict[str, Any]) -> torch.Tensor:
        beta, kind = group["beta"], group["momentum"]
        coefficients = POLAR_EXPRESS if group["polar_express"] else JORDAN
        if kind == 0:
            return group["longer"] * newton_schulz(G, coefficients)
        if isinstance(kind, str):
            D = (1 - beta) * G
            if "M" in state:
                D += beta * (state["M"].dequantize() if kind == "8 bits" else state["M"])
            if kind == "8 bits":
                eight = module_of("torchao", "optim.subclass_8bit").OptimState8bit
                state["M"] = eight.zeros(D.shape).copy_(D.contiguous())
            else:
                state["M"] = D
            return newton_schulz((1 - beta) * G + beta * D, coefficients)
        before = state["Q"] @ state["R"] if "Q" in state else torch.zeros_like(G)
        D = beta * before + (1 - beta) * G
        Q = state.get("Q")
        if Q is None:
            generator = torch.Generator().manual_seed(0)
            Q = torch.randn(G.shape[0], kind, generator=generator)
        Q = torch.linalg.qr(D @ (D.mT @ Q)).Q
        R = Q.mT @ D
        state["Q"], state["R"] = Q, R
        if group["pays"]:
            X = (1 - beta) * (G + beta / (1 - beta) * (before - Q @ R))
        else:
            X = (1 - beta) * G + beta * D
        O = newton_schulz(X, coefficients)
        longer = group["longer"]
        if longer is None:
            now = float((Q.mT @ G).norm() / (Q.mT @ X).norm().clamp(min=1e-30))
            state["longer"] = 0.95 * state.get("longer", now) + 0.05 * now
            longer = min(max(1.0, state["longer"]), group["at_most"])
        inside = Q @ (Q.mT @ O)
        return inside + longer * (O - inside)


def _normalized(O: torch.Tensor, state: Any, beta2: float) -> torch.Tensor:
    squares = O.square().mean(1)
    state["v"] = squares if "v" not in state else beta2 * state["v"] + (1 - beta2) * squares
    new = O / state["v"].sqrt().clamp(min=1e-10).unsqueeze(1)
    return new * (O.norm() / new.norm().clamp(min=1e-10))
