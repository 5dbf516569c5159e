"""Experiments on states: E6 bytes, E7 stop and resume, E8 a NaN, E9 data-parallel training."""

import hashlib
import io
import logging
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from benchmarks.common.measuring import told
from benchmarks.training.methods import METHODS, Optimizers, Setting
from benchmarks.training.model import Parts, loss_of, split, state_bytes, tensors_in
from benchmarks.training.run import Asked, Row


def e6(asked: Asked) -> Iterator[Row]:
    """Bytes of state after a step on one matrix, counted in storages, beside r·k + 2·r·M.

    Or (r + 1)(k + M) for LowRankMomentum."""
    shapes = [(256, 256), (352, 128), (1024, 512)]
    shapes += [] if asked.quick else [(1024, 2752), (2048, 2048)]
    for m, n in shapes:
        k, M = min(m, n), max(m, n)
        for name in ("adamw", "galore-r8", "galore-r32", "apollo-r8", "lowrank-r8", "momentum-r8"):
            W, other = torch.nn.Parameter(torch.zeros(m, n)), torch.nn.Parameter(torch.zeros(1))
            optimizers = METHODS[name].optimizers(Parts([W], [other]), Setting(1e-3, 0))
            W.grad = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
            for optimizer in optimizers:
                optimizer.step()
            r = METHODS[name].options.get("rank")
            numbers = 2 * k * M if r is None else r * k + 2 * r * M
            if name.startswith("momentum"):
                numbers = (r + 1) * (k + M)
            formula = 4 * numbers
            held = state_bytes(optimizers, [W])
            buffer = io.BytesIO()
            torch.save([optimizer.state_dict() for optimizer in optimizers], buffer)
            known = {"shape": [m, n], "method": name, "formula": formula, "held": held}
            yield known | {"held/formula": held / formula, "file": buffer.getbuffer().nbytes}


Start = tuple[torch.nn.Module, Optimizers, torch.Generator]


def start_of(asked: Asked, name: str) -> Start:
    model = asked.protocol.shape.build(0)
    options = Setting(1e-2, 0, refresh_every=6)
    return model, METHODS[name].optimizers(split(model), options), torch.Generator().manual_seed(0)


def some_steps(asked: Asked, start: Start, steps: int) -> None:
    model, optimizers, generator = start
    for _ in range(steps):
        model.zero_grad()
        loss_of(model, asked.batch(generator)).backward()
        for each in optimizers:
            each.step()


def digest(tensors: Any) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


PATIENCE = 300  # seconds, for other processes
STEPS = 10  # before the stop, and after it: with a refresh every 6


def e7(asked: Asked) -> Iterator[Row]:
    """Whether a run that goes on in a new process ends at the same weights, bit by bit."""
    names = ("adamw", "galore-r8", "apollo-r8", "lowrank-r8", "lowrank-energy-0.95", "momentum-r8")
    for name in names:
        model, optimizers, generator = start_of(asked, name)
        some_steps(asked, (model, optimizers, generator), STEPS)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state.pt"
            states = [optimizer.state_dict() for optimizer in optimizers]
            torch.save([model.state_dict(), states, generator.get_state()], path)
            some_steps(asked, (model, optimizers, generator), STEPS)
            unbroken = digest(model.parameters())
            for safely in (True, False):
                (ended,) = in_processes(1, resumed, asked, name, path, safely)
                yield {"method": name, "weights_only": safely} | {
                    "loads": not ended.startswith("error"),
                    "bit by bit": ended == unbroken,
                    "error": ended if ended.startswith("error") else None,
                }
                if ended == unbroken:
                    break


def resumed(rank: int, asked: Asked, name: str, path: Path, safely: bool) -> str:  # noqa: ARG001
    model, optimizers, generator = start_of(asked, name)
    try:
        weights, states, numbers = torch.load(path, weights_only=safely)
    except Exception as error:
        return f"error: {told(error)[:60]}"
    model.load_state_dict(weights)
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(state)
    generator.set_state(numbers)
    some_steps(asked, (model, optimizers, generator), STEPS)
    return digest(model.parameters())


def e8(asked: Asked) -> Iterator[Row]:
    """One NaN in the gradient of the tenth matrix, in a step with a refresh: what has changed."""
    for name in ("adamw", "galore-r8", "apollo-r8", "muon", "lowrank-r8", "momentum-r8"):
        model, optimizers, generator = start_of(asked, name)
        some_steps(asked, (model, optimizers, generator), 6)
        batch = asked.batch(generator)
        model.zero_grad()
        loss_of(model, batch).backward()
        split(model).matrices[9].grad.view(-1)[0] = torch.nan
        before, error = [p.detach().clone() for p in model.parameters()], None
        held = digest(_numbers(optimizers))
        try:
            for optimizer in optimizers:
                optimizer.step()
        except Exception as raised:
            error = told(raised)[:60]
        after = [p.detach() for p in model.parameters()]
        changed = sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        bad = sum(not bool(torch.isfinite(p).all()) for p in after)
        yield {"method": name, "parameters": len(after), "changed": changed, "not finite": bad} | {
            "state changed": digest(_numbers(optimizers)) != held,
            "skipped": getattr(optimizers[0], "skipped_steps", None),
            "error": error,
        }


def _numbers(optimizers: Optimizers) -> Iterator[torch.Tensor]:
    for optimizer in optimizers:
        for state in optimizer.state.values():
            for value in state.values():
                yield from tensors_in(torch.tensor(value) if isinstance(value, int) else value)


def e9(asked: Asked) -> Iterator[Row]:
    """Two gloo processes with half of each batch beside one with the whole of it."""
    steps = 8 if asked.quick else 20
    (one,) = in_processes(1, parallel, asked, 1, None, steps)
    with tempfile.TemporaryDirectory() as folder:
        two = in_processes(2, parallel, asked, 2, Path(folder) / "meeting", steps)
    gaps = [abs(a - b) for a, b in zip(one["losses"], two[0]["losses"], strict=True)]
    yield {
        "steps": steps,
        "same bases": two[0]["bases"] == two[1]["bases"],
        "same weights": two[0]["weights"] == two[1]["weights"],
        "first loss, gap to one process": gaps[0],
        "last loss, gap to one process": gaps[-1],
        "last loss": one["losses"][-1],
    }


def parallel(rank: int, asked: Asked, world: int, meeting: Path | None, steps: int) -> Row:
    model, optimizers, generator = start_of(asked, "lowrank-r8")
    whole: torch.nn.Module = model
    if meeting is not None:
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{meeting}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=PATIENCE),
        )
        whole = DistributedDataParallel(model)
    losses = []
    for _ in range(steps):
        batch = asked.batch(generator)
        loss = loss_of(whole, batch.chunk(world)[rank])
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        mean = loss.detach()
        if meeting is not None:
            distributed.all_reduce(mean)
        losses.append(float(mean) / world)
    bases = [optimizers[0].state[p]["basis"] for p in split(model).matrices]
    if meeting is not None:
        distributed.destroy_process_group()
    return {"losses": losses, "bases": digest(bases), "weights": digest(model.parameters())}


def in_processes(count: int, call: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `call(rank, *arguments)` returns in new processes of one thread each."""
    # What torchao says while it is imported is kept quiet there too.
    quiet = {"initializer": logging.disable, "initargs": (logging.WARNING,)}
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), **quiet) as pool:
        asked = [pool.submit(alone, call, rank, *arguments) for rank in range(count)]
        return [each.result(timeout=PATIENCE) for each in asked]


def alone(call: Callable[..., Any], *arguments: Any) -> Any:
    torch.set_num_threads(1)
    return call(*arguments)
