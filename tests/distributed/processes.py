"""A few processes that form a process group of torch, and do what they are told together."""

import datetime as dt
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

import torch
from torch import multiprocessing as mp

PATIENCE = 100.0  # seconds for one task, of a machine that is busy


class FailedError(Exception):
    """What went wrong on a rank."""


def _serve(rank: int, count: int, folder: str, timeout: float, ours: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=count,
        timeout=dt.timedelta(seconds=timeout),
    )
    while (task := ours.recv()) is not None:
        function, arguments = task
        try:
            ours.send((True, function(*arguments)))
        except BaseException:
            ours.send((False, traceback.format_exc()))
    torch.distributed.destroy_process_group()


class World:
    """`count` ranks, started once; a task that fails on one of them ends all."""

    def __init__(self, count: int, *, timeout: float = 60.0) -> None:
        self.count, self._timeout = count, timeout
        self.processes: list[Any] = []

    def _start(self) -> None:
        context = mp.get_context("forkserver")
        self._folder = tempfile.TemporaryDirectory()
        pairs = [context.Pipe() for _ in range(self.count)]
        self._pipes = [theirs for theirs, _ in pairs]
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        for rank, (_, ours) in enumerate(pairs):
            arguments = rank, self.count, self._folder.name, self._timeout, ours
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            ours.close()
            self.processes.append(process)

    def send(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Begin a task on every rank."""
        if not self.processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, arguments))

    def answer(self, rank: int) -> tuple[bool, Any]:
        """Whether the task went well on a rank, and what it returned, or how it failed."""
        try:
            if self._pipes[rank].poll(PATIENCE):
                done, found = self._pipes[rank].recv()
                return done, found
        except (EOFError, ConnectionResetError):
            self.processes[rank].join(PATIENCE)
            return False, f"ended with exit code {self.processes[rank].exitcode}"
        return False, f"no answer within {PATIENCE} seconds"

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What a function of a module returns on every rank."""
        self.send(function, *arguments)
        waiting, found = set(range(self.count)), [None] * self.count
        while waiting:
            ready = wait([self._pipes[rank] for rank in waiting], PATIENCE)
            if not ready:
                self.close(kill=True)
                message = f"no answer of ranks {sorted(waiting)} within {PATIENCE} seconds"
                raise FailedError(message)
            for rank in [rank for rank in waiting if self._pipes[rank] in ready]:
                done, found[rank] = self.answer(rank)
                if not done:
                    self.close(kill=True)
                    message = f"on rank {rank} of {self.count}: {found[rank]}"
                    raise FailedError(message)
                waiting.remove(rank)
        return found

    def close(self, *, kill: bool = False) -> None:
        for process, pipe in zip(self.processes, getattr(self, "_pipes", ()), strict=False):
            if kill:
                process.kill()
            elif process.is_alive():
                pipe.send(None)
        for process in self.processes:
            process.join(PATIENCE)
        if self.processes:
            self._folder.cleanup()
        self.processes = []
