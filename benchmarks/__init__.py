"""Benchmarks: modules that run from the root of a checkout, as `python -m benchmarks.machines.cpu`.

- suite: what asv measures, commit by commit.
- machines: what is timed on a machine, a processor or a GPU.
- studies: what is shown of errors, tolerances and published methods.
- training: a language model, trained with many optimizers.
- report: the pages of the documentation and their plots, from the files in `results`.
- common: what several of these share.

Importing this package puts src/ on the path: no installation of lowrank is needed.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
if str(SOURCE) not in sys.path:
    sys.path.insert(0, str(SOURCE))
