"""Whether gradients are finite."""

import torch

from lowrank.optim._refresh import alike
from lowrank.optim._sharding import agreed, local


def are_finite(parameters: list[torch.Tensor]) -> bool:
    """Whether the squares of all gradients have a finite sum: one number read by the host."""
    grads = [_values(local(p.grad)) for p in parameters if p.grad is not None]
    sizes = []
    for same in alike(grads, lambda grad: (type(grad), grad.device, grad.dtype)):
        dtype = same[0].dtype
        # the range of bfloat16 is that of float32, and a norm in its own dtype needs no copy
        wide = torch.float32 if dtype == torch.float16 else None
        norms = torch.stack(torch._foreach_norm(same, 2.0, wide))
        sizes.append(norms.double() / (torch.finfo(wide or dtype).max ** 0.5 / 16))
    if not sizes:  # on this rank: others may have gradients of weights that are not sharded
        device = parameters[0].device if parameters else None
        sizes.append(torch.zeros(1, device=device))
    together = sizes[0]
    if len(sizes) > 1:
        together = torch.cat([size.to(sizes[0].device) for size in sizes])
    return bool(agreed((together < 1).all(), parameters))


def _values(grad: torch.Tensor) -> torch.Tensor:
    return grad.coalesce().values() if grad.layout is torch.sparse_coo else grad
