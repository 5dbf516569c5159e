"""The command line: see the docstring of the package."""

import argparse
import logging
import os
import sys
import time
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
logging.disable(logging.WARNING)  # torchao tells which of its libraries it can't load

from benchmarks import training  # noqa: E402
from benchmarks.training import data, experiments, report, run  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=training.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["all", "run", "experiments", "table", "plots"])
    parser.add_argument("--corpus", choices=list(data.CORPORA), default="kjv")
    parser.add_argument("--only", metavar="PATTERN", help="regular expression for names")
    parser.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--quick", action="store_true", help="a trial of few steps and methods")
    parser.add_argument("--large", action="store_true", help="matrices up to 4096×11008 too")
    return parser.parse_args()


def main() -> None:
    warnings.simplefilter("ignore")
    asked = arguments()
    start = time.perf_counter()
    if asked.what == "all":
        parts = [("run", name) for name in data.CORPORA]
        parts += [("experiments", asked.corpus)]
        parts += [(what, name) for what in ("table", "plots") for name in data.CORPORA]
    else:
        parts = [(asked.what, asked.corpus)]
    failed = sum(perform(what, corpus, asked) for what, corpus in parts)
    if asked.what in ("all", "run", "experiments"):
        print(f"{time.perf_counter() - start:.0f} s", flush=True)
    if failed:
        sys.exit(1)


def perform(what: str, corpus: str, asked: argparse.Namespace) -> int:
    """One of the parts; returns how many methods or experiments failed."""
    protocol = run.QUICK if asked.quick else run.FULL
    if what == "run" and asked.workers > 1:
        given = ["run", "--corpus", corpus, *(["--quick"] if asked.quick else [])]
        given += ["--only", asked.only] if asked.only else []
        return run.work_together(asked.workers, given)
    if what == "run":
        few = asked.quick or corpus != "kjv"
        return run.work(protocol, corpus, run.chosen(asked.only, few=few))
    if what == "experiments":
        return experiments.perform(protocol, corpus, asked.only, large=asked.large)
    if what == "table":
        print(report.write_table(protocol, corpus))
    else:
        for path in report.write_plots(protocol, corpus):
            print(path)
    return 0


if __name__ == "__main__":
    main()
