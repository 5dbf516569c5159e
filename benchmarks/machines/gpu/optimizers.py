"""The part that times steps of optimizers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.common.measuring import Call
from benchmarks.machines import optimizer
from benchmarks.machines.gpu.bench import Bench, Calls


def llama(device: torch.device, *, small: bool) -> torch.nn.Module:
    """The weights of a Llama of 130M: 84 matrices that are compressed, and 27 that are not."""
    width, wide, words, layers = (64, 176, 500, 2) if small else (768, 2048, 32_000, 12)
    of = {"in": (width, wide), "out": (wide, width), "same": (width, width)}
    names = ("same",) * 4 + ("in",) * 2 + ("out",)
    linear = partial(torch.nn.Linear, bias=False)
    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        {
            "embedding": torch.nn.Embedding(words, width),
            "layers": torch.nn.ModuleList(linear(*of[name]) for name in names * layers),
            "norms": torch.nn.ModuleList(torch.nn.RMSNorm(width) for _ in range(2 * layers + 1)),
            "lm_head": linear(width, words),
        }
    )
    return model.to(device, torch.bfloat16)


def stepping(model_of: Callable[[], torch.nn.Module], rank: int, _: Any = None) -> Calls:
    """A step of each optimizer, after the first one, which makes its bases."""

    def fail(error: Exception) -> None:
        raise error

    calls = []
    for name, make in optimizer.makers(rank).items():
        try:
            step = make(optimizer.with_gradients(model_of())).step
            step()
        except Exception as error:
            step = partial(fail, error)
        run = partial(lambda step, _: step(), step)
        calls.append(Call(optimizer.library_of(name), name, None, run, "torch AdamW, fused"))
    return calls


def optimizers(bench: Bench) -> None:
    small = bench.sizes == "small"
    rank = 16 if small else 192
    calls_of = partial(stepping, partial(llama, bench.device, small=small), rank)
    options = {"through": "torch", "rank": rank}
    bench.measure("llama step", calls_of, "bfloat16", None, None, None, **options)
    budget = bench.budget.part(keeping=15.0)
    optimizer.measure(bench.results, bench.device, "bfloat16", quick=small, budget=budget)
    width = optimizer.Sizes(quick=small).width
    block = partial(optimizer.block, width, bench.device, torch.bfloat16)
    calls = {call.method: call for call in stepping(block, width // 8)}
    for row in bench.results.rows:
        if row["section"] == "step" and row["seconds"] and bench.budget.left() > 0.0:
            counts = bench.counts(calls[row["method"]], "torch")
            row.update(counts, peak_bytes=row["peak_bytes"])
    bench.results.save()
