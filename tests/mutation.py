"""Change one thing in the library's source at a time, and count the changes that the tests notice.

    python tests/mutation.py [--mutants 300] [--seed 0] [--workers 2] [--only TEXT]

A mutant is a copy of a module with one operator, number, condition, statement, slice or conjugate
changed. It lives in a forked process only: no file is written. Prints each survivor.
"""

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.util
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "src" / "lowrank"
MODULES = (
    "_linalg.panel",
    "householder",
    "_linalg.certificate",
    "_factorizations.truncate",
    "_rangefinder.residuals",
    "_rangefinder.estimates",
    "_rangefinder.state",
    "_rangefinder.growth",
    "_rangefinder.found",
    "rangefinder",
)
FILES = (  # those that fail soonest come first
    "inputs",
    "panel",
    "householder",
    "any_matrix",
    "certificate",
    "exact",
    "factorizations",
    "rangefinder",
    "adverse",
    "centering",
    "operators",
    "cost_page",
)
# The ways of devices that are not here run on tensors of torch only, in these functions.
OF_DEVICES = (
    "_shifted_cholesky_qr", "gram_matrix", "_by_halves", "_native_qr", "_scaled", "_polished",
    "orthonormalize", "conditioned", "_can_be_checked", "is_mixed", "_mixed_passes", "mixed_svd",
    "_mixed_conditioned", "_double_of", "_constants_of", "_kept_constant", "spectral_norm",
    "_image", "orthonormal", "checked_near_rounding", "wide_gram_matrix", "defect",
)  # fmt: skip
NUMPY_ONLY = "not strict and not torch and not complex64"

SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div, ast.Pow: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE,
    ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.And: ast.Or, ast.Or: ast.And, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


def changes(node):
    """(kind, replacement) for every way in which `node` is changed."""

    def changed(**fields):
        new = copy.deepcopy(node)
        for name, value in fields.items():
            setattr(new, name, value)
        return new

    match node:
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) if type(op) in SWAPS:
            yield "operator", changed(op=SWAPS[type(op)]())
        case ast.BinOp(op=ast.MatMult()):
            yield "operator", changed(left=node.right, right=node.left)
        case ast.Compare(ops=[op, *rest]) if type(op) in SWAPS:
            yield "comparison", changed(ops=[SWAPS[type(op)](), *rest])
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            yield "sign", node.operand
        case ast.Constant(value=bool(value)):
            yield "constant", changed(value=not value)
        case ast.Constant(value=int(value)):
            yield "constant", changed(value=value + 1)
        case ast.Constant(value=float(value)):
            yield "constant", changed(value=2.0 * value + (value == 0.0))
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            if not isinstance(node, ast.While):
                yield "condition", changed(test=ast.UnaryOp(ast.Not(), test))
        case ast.Call(func=ast.Name("adjoint") | ast.Attribute(attr="adjoint"), args=[X]):
            yield "conjugate", ast.Attribute(X, "mT", ast.Load())
        case ast.Call(
            func=ast.Name("adjoint_matmul") | ast.Attribute(attr="adjoint_matmul"), args=[X, Y]
        ):
            yield "conjugate", ast.BinOp(ast.Attribute(X, "mT", ast.Load()), ast.MatMult(), Y)
        case ast.Call(func=ast.Name("min" | "max" as name)):
            other = "max" if name == "min" else "min"
            yield "operator", changed(func=ast.Name(other, ast.Load()))
        case ast.Slice(lower=None, upper=upper) if upper is not None:
            yield "slice", changed(upper=ast.BinOp(upper, ast.Sub(), ast.Constant(1)))
        case ast.Slice(lower=lower) if lower is not None:
            yield "slice", changed(lower=ast.BinOp(lower, ast.Add(), ast.Constant(1)))
        case ast.Assign() | ast.AugAssign() | ast.Expr(value=ast.Call()) | ast.Raise():
            yield "statement", ast.Pass()


def parts(node, inside=""):
    """Every node that may be changed, with its parent, field, position and function."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for position, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr):
                continue
            if isinstance(child, ast.Assign) and inside == "":
                continue  # names of a module: types, __all__, texts
            where = child.name if isinstance(child, ast.FunctionDef | ast.ClassDef) else inside
            yield node, field, position if isinstance(value, list) else None, child, where
            yield from parts(child, where)


def source_of(module):
    return (PACKAGE / f"{module.replace('.', '/')}.py").read_text()


def mutants(module):
    """(module, line, function, kind, before, after, source) for every change of a module."""
    tree = ast.parse(source_of(module))
    for parent, field, position, node, where in list(parts(tree)):
        for kind, new in list(changes(node)):
            ast.fix_missing_locations(ast.copy_location(new, node))
            siblings = getattr(parent, field)
            if position is None:
                setattr(parent, field, new)
            else:
                siblings[position] = new
            source = ast.unparse(tree)
            if position is None:
                setattr(parent, field, node)
            else:
                siblings[position] = node
            yield module, node.lineno, where, kind, ast.unparse(node), ast.unparse(new), source


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports `source` for one module."""

    def __init__(self, name, source):
        self.name, self.source = name, source

    def find_spec(self, fullname, path, target=None):
        return importlib.util.spec_from_loader(fullname, self) if fullname == self.name else None

    def get_source(self, fullname):
        return self.source


def run(module, where, source):
    """Run the tests on a mutant, and exit with their status."""
    import pytest

    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    sys.meta_path.insert(0, Mutated(f"lowrank.{module}", source))
    files = [*(["kernels", "pretended"] if where in OF_DEVICES else []), *FILES]
    paths = [str(next(TESTS.glob(f"*/test_{name}.py"))) for name in files]
    os.chdir(TESTS.parent)
    code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-k", NUMPY_ONLY, *paths])
    os._exit(int(code))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--limit",
        type=float,
        default=5.0,
        help="time for a mutant, relative to that of no mutation",
    )
    parser.add_argument(
        "--only", default="", help="part of a module and function, as _panel.gram_matrix"
    )
    chosen = parser.parse_args()
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    sys.path.insert(0, str(PACKAGE.parent))
    for name in ("array_api_strict", "pytest", "torch"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)

    every = [mutant for module in MODULES for mutant in mutants(module)]
    every = [m for m in every if chosen.only in f"{m[0]}.{m[2]}"]
    sample = sorted(
        random.Random(chosen.seed).sample(every, min(chosen.mutants, len(every))),
        key=lambda m: m[:2],
    )
    print(f"{len(sample)} of {len(every)} mutants", flush=True)
    fork, running, killed, total = multiprocessing.get_context("fork"), {}, Counter(), Counter()
    sound = [ast.unparse(ast.parse(source_of(MODULES[0])))]
    control = fork.Process(target=run, args=(MODULES[0], OF_DEVICES[0], *sound))
    since = time.monotonic()
    control.start()
    control.join()
    if control.exitcode != 0:
        parser.error("the tests fail without a mutation")
    seconds = time.monotonic() - since
    print(f"tests take {seconds:.0f} s on what is sound", flush=True)
    waiting = list(sample)
    while waiting or running:
        while waiting and len(running) < chosen.workers:
            mutant = waiting.pop(0)
            process = fork.Process(target=run, args=(mutant[0], mutant[2], mutant[-1]))
            process.start()
            running[process] = mutant, time.monotonic()
        time.sleep(0.05)
        for process, (mutant, since) in list(running.items()):
            if process.is_alive() and time.monotonic() - since < chosen.limit * seconds:
                continue
            if process.is_alive():
                process.kill()
            process.join()
            del running[process]
            module, line, where, kind, before, after, _ = mutant
            total[kind] += 1
            killed[kind] += process.exitcode != 0
            if process.exitcode == 0:
                print(f"{module}.{where}:{line} {kind}\n  - {before}\n  + {after}", flush=True)
    for kind in total:
        print(f"{kind:12} {killed[kind]:4} of {total[kind]:4}")
    print(f"{'all':12} {killed.total():4} of {total.total():4}")


if __name__ == "__main__":
    main()
