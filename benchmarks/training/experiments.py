"""Smaller questions, each one function with a JSON result of flat rows.

E2 seconds of a refresh; E3 what a basis captures of a gradient; E4 what the basis of one batch
captures of the gradient of many; E5 a problem on which the basis of the gradient alone fails;
E6 bytes of state by their formula; E7 stop and resume in a new process; E8 a NaN in a gradient;
E9 two processes of data-parallel training beside one; E10 a small convolutional net; E11 the
language model with larger batches, weight decay, bfloat16 weights and more steps.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator

import torch

from benchmarks.common.measuring import told
from benchmarks.common.results import write_json
from benchmarks.training.bases import e2, e3, e4
from benchmarks.training.problems import e5, e10, e11
from benchmarks.training.run import RESULTS, Asked, Protocol, Row, machine
from benchmarks.training.states import e6, e7, e8, e9

EXPERIMENTS: dict[str, Callable[[Asked], Iterator[Row]]] = {
    function.__name__: function for function in (e2, e3, e4, e5, e6, e7, e8, e9, e10, e11)
}


def perform(protocol: Protocol, corpus: str, only: str | None, *, large: bool) -> int:
    """Make the experiments, one file each; returns how many failed."""
    torch.set_num_threads(1)
    quick, failed = protocol.folder == "quick", 0
    asked = Asked(protocol, corpus, quick, large)
    for name, experiment in EXPERIMENTS.items():
        if not re.search(only or "", name):
            continue
        start = time.perf_counter()
        about = machine("galore-torch", "apollo-torch") | {
            "experiment": name,
            "question": (experiment.__doc__ or "").strip(),
            "corpus": asked.corpus.about(),
            "quick": quick,
        }
        try:
            rows = list(experiment(asked))
        except Exception as error:
            failed += 1
            print(f"{name} failed: {told(error)}", file=sys.stderr, flush=True)
            continue
        about |= {"wall_seconds": time.perf_counter() - start, "rows": rows}
        write_json(RESULTS / protocol.folder / "experiments" / f"{name}.json", about)
        print(f"{name}: {len(rows)} rows in {about['wall_seconds']:.0f} s", flush=True)
    return failed
