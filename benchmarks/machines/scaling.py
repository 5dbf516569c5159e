"""What a sharded SVD costs each process, and what that predicts for many.

    python -m benchmarks.machines.scaling            # the table of docs/explanation/scaling.md
    python -m benchmarks.machines.scaling --m 1e8 --n 4096 --k 128 --processes 1,8,64

The model of `lowrank.svd` at a fixed rank k, with l = k + oversampling columns and q power
iterations, of an m×n matrix sharded by rows over P processes. Its counts of numbers communicated
are exact, and tests hold them against what 2 and 4 processes do; its times follow from them and
from a machine that is assumed, and are no measurement.
"""

import argparse
import math
from dataclasses import dataclass

from benchmarks import ROOT
from benchmarks.common.tables import table

TABLE = ROOT / "docs" / "explanation" / "scaling_table.md"


@dataclass(frozen=True, slots=True)
class Machine:
    """A process and its network; by default one GPU of a cluster, in single precision."""

    products: float = 40e12  # flops in a second, in matrix products
    panels: float = 4e12  # and in QR and SVD
    memory: float = 2e12  # bytes in a second
    network: float = 25e9  # bytes in a second, each way
    latency: float = 10e-6  # seconds of a message
    word: int = 4  # bytes of a number


@dataclass(frozen=True, slots=True)
class Counts:
    """What each process gives to collectives: calls, and numbers."""

    reduces: int
    reduced: int
    gathers: int
    gathered: float
    broadcasts: int

    @classmethod
    def of_svd(
        cls, n: int, k: int, *, q: int = 2, oversampling: int = 10, rows: float = math.inf
    ) -> "Counts":
        """Of a matrix sharded by rows, of n columns, whatever m and P > 1 are.

        Where processes have fewer `rows` than they find columns, their factors are as short.
        """
        columns = min(k + oversampling, n)
        factors = (q + 1) * columns * min(columns, rows)
        # a sum for the sketch and for each power iteration; a gather for the QR along the rows in
        # each iteration and for the factors, and one for the heights of the parts and for their
        # norms; the seed, one flag, the norm and the rank are broadcast
        return cls(q + 1, (q + 1) * n * columns, q + 3, factors + 2, 4)


@dataclass(frozen=True, slots=True)
class Seconds:
    products: float  # with the part of A that a process has
    replicated: float  # the same on every process
    tall: float  # QR of the part along the rows
    second: float  # QR of the small factors of all processes together
    network: float

    @property
    def total(self) -> float:
        return self.products + self.replicated + self.tall + self.second + self.network


def seconds_of_svd(  # the parameters of the model
    m: float,
    n: int,
    k: int,
    P: int,
    machine: Machine,
    *,
    q: int = 2,
    oversampling: int = 10,
    tree: bool = False,
) -> Seconds:
    """With the second QR of all factors at once, or along a binary tree of pairs."""
    b, counts = min(k + oversampling, n), Counts.of_svd(n, k, q=q, oversampling=oversampling)
    rows = m / P
    flops = 2 * rows * n * b * (2 * q + 2)
    # a product reads A once; that of few columns is bound by the memory
    products = max(flops / machine.products, rows * n * machine.word * (2 * q + 2) / machine.memory)
    replicated = (4 * n * b**2 * (q + 1) + 22 * b**3 + 2 * n * b * k) / machine.panels
    tall = (4 * rows * b**2 / machine.panels + 2 * rows * b**2 / machine.products) * (q + 1)
    tall += 2 * rows * b * k / machine.products
    levels = math.ceil(math.log2(P)) if P > 1 else 0
    if P == 1:
        second, moved, messages = 0.0, 0.0, 0.0
    else:
        second = (q + 1) * (levels * 8 * b**3 if tree else 4 * P * b**3) / machine.panels
        # a ring for the sums; factors of all processes to each of them, or one a level
        moved = 2 * (P - 1) / P * counts.reduced
        moved += (levels if tree else P - 1) * (q + 1) * b**2
        messages = (counts.reduces + counts.gathers + counts.broadcasts) * 2 * levels
    network = moved * machine.word / machine.network + messages * machine.latency
    return Seconds(products, replicated, tall, second, network)


def page(m: float, n: int, k: int, processes: list[int], machine: Machine) -> str:
    """Strong scaling, and weak scaling of the same rows for each process."""
    told_of = (
        f"n = {n:,}, k = {k}, q = 2, {machine.word} bytes a number; {machine.products / 1e12:g} "
        f"Tflop/s in products and {machine.panels / 1e12:g} in QR, {machine.network / 1e9:g} GB/s "
        f"and {machine.latency * 1e6:g} µs between processes."
    )
    columns = [
        "rows in all", "processes", "total, at once", "efficiency", "total, tree", "efficiency",
        "products", "QR along the rows", "replicated", "second QR, at once", "in a tree", "network",
    ]  # fmt: skip
    lines = []
    for weak in (False, True):
        one = seconds_of_svd(m, n, k, 1, machine).total
        for P in processes:
            rows = m * P if weak else m
            at_once, tree = (
                seconds_of_svd(rows, n, k, P, machine, tree=tree) for tree in (False, True)
            )
            ideal = one if weak else one / P
            totals = (told(at_once.total), f"{ideal / at_once.total:.0%}")
            totals += (told(tree.total), f"{ideal / tree.total:.0%}")
            parts = (at_once.products, at_once.tall, at_once.replicated, at_once.second)
            lines.append(
                [f"{rows:.3g}", f"{P:,}", *totals]
                + [told(seconds) for seconds in (*parts, tree.second, at_once.network)]
            )
    return "\n".join([told_of, "", *table(columns, lines, left=0)])


def told(seconds: float) -> str:
    if seconds == 0.0:
        return "0"
    if seconds >= 1.0:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--m", type=float, default=2.0**20, help="rows of one process")
    parser.add_argument("--n", type=int, default=2**14)
    parser.add_argument("--k", type=int, default=256)
    parser.add_argument("--processes", default="1,4,64,4096")
    parser.add_argument("--write", action="store_true", help="write the table of the documentation")
    asked = parser.parse_args()
    text = page(asked.m, asked.n, asked.k, [*map(int, asked.processes.split(","))], Machine())
    print(text)
    if asked.write:
        TABLE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
