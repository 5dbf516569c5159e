"""Checkpoints of models: compressed ones, and adapters from two of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from math import hypot
from typing import Any

import lowrank
from lowrank._cli.arguments import Options
from lowrank._cli.telling import Progress, complain, guarded, printable, refuse, required, tell
from lowrank.results import size_of


def are_asked(options: Options) -> bool:
    """Whether a checkpoint or an adapter is to be written; then the other options must fit."""
    file, output, lora = options.file, options.output, options.lora
    in_parts = file.is_dir() or file.suffix.lower() == ".json"
    is_file = output is not None and output.suffix.lower() == ".safetensors"
    if (options.minus is None) != (lora is None):
        refuse("--minus BASE and --lora DIR go together: the adapter is FILE minus BASE")
    given = {name for name, value in vars(options).items() if value}
    if lora is None and (alone := given & {"budget", "save_rest", "transposed"}):
        refuse(f"--{alone.pop().replace('_', '-')} applies to --lora only")
    if not (in_parts or is_file or lora):
        return False
    if lora and output:
        refuse("--lora and --output both name what to write; leave one out")
    if not lora and output is None:
        refuse(f"{file}: give --output DIR for factors, or --minus BASE and --lora DIR")
    if not lora and in_parts == is_file:
        kind = "directory" if in_parts else "file"
        refuse(f"--output must be a {kind}, as FILE is; got {output}")
    if options.norm == "fro":
        given.discard("norm")
    if unfit := given & {"atol", "center", "name", "norm", "plot", "power_iterations"}:
        refuse(f"--{unfit.pop().replace('_', '-')} does not apply to checkpoints")
    if len(options.rtols) > 1:
        refuse(f"give one tolerance for a checkpoint, as --rtol 0.1; got {len(options.rtols)}")
    return True


def run(options: Options) -> bool:
    """Write a checkpoint or an adapter, and print the result; whether all tolerances are met."""
    for package in ("torch", "safetensors"):
        required(package, "a checkpoint")
    # Here, because it imports torch.
    from lowrank.adapters import extract_lora  # noqa: PLC0415
    from lowrank.checkpoints import factorize  # noqa: PLC0415

    progress, (rtol,) = Progress(), options.rtols

    def show(change: Any, left: int) -> None:
        rank = "" if change.rank is None else f", rank {change.rank}"
        progress.show(lambda: f"{change.name}{rank}; {left} tensors left")

    keys = {"rtol": rtol, "rank": options.rank, "rng": options.seed}
    keys |= {} if options.skip_names is None else {"skip": options.skip_names}
    keys |= {"device": options.device, "overwrite": options.force, "callback": show}
    target = options.output or options.lora
    with guarded(target, "written"):
        if target.exists() and not options.force:
            refuse("exists; --force replaces it")
        progress.start(str(options.file))
        if options.minus is None:
            changes = factorize(options.file, target, **keys)
        else:
            keys |= {name: getattr(options, name) for name in ("budget", "save_rest", "transposed")}
            changes = extract_lora(options.file, options.minus, target, **keys)
    progress.start("")
    if options.json:
        head = {"lowrank": lowrank.__version__, "file": str(options.file), "output": str(target)}
        tell(json.dumps(head | {"tensors": [asdict(change) for change in changes]}, indent=2))
    else:
        _table(changes, of_difference=options.minus is not None)
    missed = [change.name for change in changes if change.converged is False]
    if missed:
        complain(f"{target}: {len(missed)} weights miss the tolerance, such as {missed[0]}")
    return not missed


def _table(changes: Sequence[Any], *, of_difference: bool) -> None:
    factors = [change for change in changes if change.rank]
    others = [change for change in changes if not change.rank]
    width = max((len(printable(change.name)) for change in factors), default=6)
    title = "change  " if of_difference else ""
    tell(f"{'tensor':{width}}        shape  rank  {title}error bound            bytes")
    for change in factors:
        name, shape = printable(change.name), "×".join(map(str, change.shape))
        moved = f"{_share(change.norm, change.base_norm):>6}  " if of_difference else ""
        error = _share(change.error_bound, change.norm)
        memory = f"{size_of(change.written)} {change.written / change.nbytes:>5.0%}"
        tell(f"{name:{width}} {shape:>12} {change.rank:5}  {moved}{error:>11} {memory:>16}")
    written, before = (sum(getattr(c, key) for c in changes) for key in ("written", "nbytes"))
    norm, lost = (hypot(*(getattr(c, key) for c in factors)) for key in ("norm", "error_bound"))
    error = _share(lost, norm)
    if not of_difference:
        tell(f"\n{size_of(before)} became {size_of(written)}; {len(others)} tensors are unchanged.")
        tell(f"The factorized weights have an error of {error}.")
        return
    tell(f"\nThe error is {error} of the change of these weights; {size_of(written)} were written.")
    for change in others:
        moved = change.norm and f"changed by {_share(change.norm, change.base_norm)}"
        why = "; ".join(filter(None, (moved, change.note, size_of(change.nbytes))))
        what = "in full" if change.written else "not in the adapter"
        tell(f"{what}: {printable(change.name)}: {why}")


def _share(part: float, whole: float) -> str:
    return f"{part / (whole or 1.0):.2%}"
