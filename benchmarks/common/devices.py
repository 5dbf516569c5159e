"""Devices of torch, and what is counted on them: reads, kernels, bytes."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.common.results import cpu_name


def asked_device(name: str, trial: str = "--device cpu") -> tuple[Any, str]:
    """The torch device of this name, and what it is; ends the program where it is not there."""
    import torch  # noqa: PLC0415

    device = torch.device(name)
    if device.type != "cuda":
        return device, cpu_name()
    if not torch.cuda.is_available():
        sys.exit(f"torch sees no CUDA device; for a trial: {trial}")
    return device, torch.cuda.get_device_name(device)


def synchronize(device: Any) -> None:
    """Wait for a GPU; nothing else has work that is not done."""
    import torch  # noqa: PLC0415

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def host_reads(call: Callable[[], Any]) -> int:
    """How often `call` reads a value of a torch tensor, and so waits for the device.

    Counted by the operation behind `item`, `float`, `bool` and `int` of a tensor. Waits inside
    one operation, such as the check of a factorization for convergence, are not seen.
    """
    import torch  # noqa: PLC0415
    from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC0415

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.count += func is torch.ops.aten._local_scalar_dense.default
            return func(*args, **(kwargs or {}))

    with Reads() as counter:
        call()
    return int(counter.count)


def peak_bytes(call: Callable[[], Any], device: Any) -> int | None:
    """Memory of torch's CUDA allocator that `call` needs beyond what was there, with its result.

    None on other devices, whose allocator keeps no count.
    """
    import torch  # noqa: PLC0415

    if torch.device(device).type != "cuda":
        call()
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    base = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - base
    del result
    return int(peak)


def kernels(call: Callable[[], Any], device: Any) -> int | None:
    """Kernels that `call` launches on a CUDA device, by torch's profiler; None on other devices.

    Copies and fills of memory are not counted. Once a profiler has run, launches may be slower:
    count after all times have been taken.
    """
    import torch  # noqa: PLC0415
    from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415

    is_cuda = torch.device(device).type == "cuda"
    if is_cuda:
        torch.cuda.synchronize(device)
    activities = [ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]
    with quiet(), profile(activities=activities) as found:
        call()
        if is_cuda:
            torch.cuda.synchronize(device)
    names = [event.name for event in found.events() or () if _is_on_device(event)]
    launched = [name for name in names if not name.lower().startswith(("memcpy", "memset"))]
    return len(launched) if is_cuda else None


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what libraries write to the standard error, whatever language they are written in."""
    sys.stderr.flush()
    kept = os.dup(2)
    sink = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)


def _is_on_device(event: Any) -> bool:
    from torch.autograd import DeviceType  # noqa: PLC0415

    return event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
