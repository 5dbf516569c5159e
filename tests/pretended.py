"""Tensors that say they are on a CUDA device, and compute on the CPU.

Python sees ``cuda:0``, so that the library goes the ways it goes on a GPU, with real numbers; the
C++ of torch, which may be built without CUDA, sees a CPU. Two things are as on a GPU: arrays of
two places are not mixed, and a quotient by a number is a product with its reciprocal. The kernels
are not: their rounding, and what an SVD asks the device for within itself.
"""

import itertools
import warnings
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import lowrank
from lowrank._linalg import panel as _panel

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten

# Operations that launch nothing, beside those of which torch itself says that they are views.
FREE = {"_reshape_alias", "_unsafe_view", "empty", "empty_like", "empty_strided", "lift_fresh"}
FREE |= {"new_empty", "new_empty_strided", "resize_", "set_", "squeeze_", "t_", "unsqueeze_"}
READS = {"_local_scalar_dense", "cpu", "equal", "is_nonzero", "masked_select", "nonzero"}
CHECKS = {"_linalg_check_errors"}  # of torch's own solve, inv and cholesky, which wait, too
# What these take may be elsewhere, as numbers (arrays without dimensions) may.
MIXED = {"copy_", "index", "index_put_", "_index_put_impl_"}

# Where the numbers are, what a read answers where there are none, and who counts.
now = SimpleNamespace(inner="cpu", answers=None, flush=False, counts=None)


class Pretended(torch.Tensor):
    """A tensor around another one, `inner`, which holds the numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device, is_cuda, is_cpu = CUDA, True, False

    @staticmethod
    def __new__(cls, inner):
        layout = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, **layout)
        torch._C._set_conj(made, inner.is_conj())
        torch._C._set_neg(made, inner.is_neg())
        made.inner = inner
        return made

    def __init__(self, inner):
        pass

    def __repr__(self):
        return f"{self.inner!r} on {CUDA}"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    @property
    def data(self):
        return torch.Tensor.data.__get__(self)

    @data.setter
    def data(self, other):
        torch.Tensor.data.__set__(self, other)
        self.inner = other.inner

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def numpy(self, **_):
        message = f"can't convert {CUDA} device type tensor to numpy. Use Tensor.cpu() first."
        raise TypeError(message)

    def cpu(self):
        _count("cpu")
        if now.inner == "meta":
            return torch.asarray([next(now.answers) for _ in range(self.numel())])
        return self.inner.resolve_conj().resolve_neg().clone()

    def to(self, *args, device=None, **options):
        place, rest = _split(args)
        is_here = torch.device(place or device or CUDA).type == "cuda"
        there = self if is_here else self.cpu()
        return torch.Tensor.to(there, *rest, **options) if rest or options else there


class Generator(torch.Generator):
    """What `torch.Generator` is while we pretend."""

    device = CUDA

    def __new__(cls, device="cpu"):
        is_cuda = torch.device(device).type == "cuda"
        return super().__new__(cls, "cpu") if is_cuda else cls.__base__(device)


Generator.__module__ = "torch"  # by which the library tells whose a generator is


class Creation(TorchFunctionMode):
    """What is made on a CUDA device, or moved to it, is pretended."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        place, rest = kwargs.get("device"), args
        if func is torch.Tensor.to:
            found, rest = _split(args)
            place = found or place
        if place is None or torch.device(place).type != "cuda" or isinstance(args[0], Pretended):
            return func(*args, **kwargs)
        kwargs["device"] = now.inner
        if now.inner == "meta":
            kwargs.pop("generator", None)
        made = func(*rest, **kwargs)
        if made.numel():
            _count(func.__name__)
        return Pretended(made)


def _split(args):
    """A device among the arguments, and the others."""
    places = [each for each in args if isinstance(each, str | torch.device)]
    return next(iter(places), None), [each for each in args if each not in places]


def _count(name):
    if now.counts is None:
        return
    if name in READS:
        now.counts.reads += 1
    elif name in CHECKS:
        now.counts.checks += 1
    elif name not in FREE:
        now.counts.operations[name] += 1
        now.counts.launched += 1


def _mapped(function, values):
    """The same lists, tuples and dictionaries, with the function of what is in them."""
    if isinstance(values, list | tuple):
        return type(values)([_mapped(function, X) for X in values])
    if isinstance(values, dict):
        return {name: _mapped(function, X) for name, X in values.items()}
    return function(values)


def _tensors(values):
    """Those in lists and tuples."""
    if isinstance(values, list | tuple):
        return [X for each in values for X in _tensors(each)]
    return [values] if isinstance(values, torch.Tensor) else []


def _unwrapped(X):
    if isinstance(X, torch.device) and X.type == "cuda":
        return torch.device(now.inner)
    return X.inner if isinstance(X, Pretended) else X


def _run(func, args, kwargs):
    name = func._schema.name.removeprefix("aten::")
    given = _tensors((*args, *kwargs.values()))
    if name not in MIXED and any(X.ndim and not isinstance(X, Pretended) for X in given):
        message = f"{name}: expected all tensors to be on one device, found {CUDA} and cpu."
        raise RuntimeError(message)
    by_mask = name == "index" and any(X.dtype == torch.bool for X in given[1:])
    to_host = name == "copy_" and not isinstance(args[0], Pretended)
    if by_mask or to_host:
        _count("cpu")
    by_number = name in ("div", "div_") and not isinstance(args[1], Pretended) and not kwargs
    known = {id(_unwrapped(X)): X for X in given}  # what is changed in place stays what it is
    args, kwargs = _mapped(_unwrapped, args), _mapped(_unwrapped, kwargs)
    if name in READS and now.inner == "meta":
        _count(name)
        return True if args[0].dtype == torch.bool else next(now.answers)
    if by_number:
        args = (args[0], torch.as_tensor(args[1], dtype=args[0].dtype).reciprocal())
        func = aten.mul.Tensor if name == "div" else aten.mul_.Tensor
    torch.set_flush_denormal(now.flush)
    try:
        made = func(*args, **kwargs)
    finally:
        torch.set_flush_denormal(False)
    results = _tensors(made)
    # what returns nothing writes to what it is given
    launches = any(X.numel() for X in results) if results else func._schema.is_mutable
    if name in {*READS, *CHECKS} or (launches and not func.is_view):
        _count(name)

    def wrapped(X):
        if not isinstance(X, torch.Tensor):
            return X
        return known[id(X)] if id(X) in known else Pretended(X)

    return _mapped(wrapped, made)


@contextmanager
def pretending(*, flush=False):
    """Let CUDA be there; with `flush`, it takes numbers below the normal ones for zero."""
    usual = torch.Generator
    torch.Generator, now.flush = Generator, flush
    try:
        with Creation():
            yield
    finally:
        torch.Generator, now.flush = usual, False


@contextmanager
def without_numbers(answers=()):
    """No memory, and no numbers: a read answers True, or the next of the answers, or one."""
    now.inner, now.answers = "meta", itertools.chain(answers, itertools.repeat(1.0))
    kept = _panel._kept_constant.cache_clear  # of one device, and now of another
    kept()
    try:
        with pretending():
            yield
    finally:
        now.inner, now.answers = "cpu", None
        kept()


@contextmanager
def counting():
    """Operations launched, in all and by name, and how often the host, or torch, read a value."""
    before = now.counts
    now.counts = SimpleNamespace(operations=Counter(), launched=0, reads=0, checks=0)
    try:
        yield now.counts
    finally:
        now.counts = before


def reads(function):
    """How often the host waits in a call, and what it returns."""
    with counting() as counts:
        result = function()
    return counts.reads, result


def from_numpy(X):
    return Pretended(torch.asarray(X.copy()))


def to_numpy(X):
    """The numbers in double precision, after a look at where they live."""
    assert isinstance(X, Pretended)
    X = X.cpu()
    return X.to(torch.complex128 if X.is_complex() else torch.float64).numpy()


class _Reads(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def reads_of_tensors(function):
    """How often `item` and the like are asked of tensors that do not pretend, and the result."""
    with _Reads() as counter:
        result = function()
    return counter.count, result


# -- what is counted of the optimizers, by tests and benchmarks ------------------------------------


def llama_of_130_million(dtype):
    """Its weights, with gradients: 84 matrices, and 27 others."""
    matrices = ([(768, 768)] * 4 + [(2048, 768)] * 2 + [(768, 2048)]) * 12
    others = [(32000, 768)] * 2 + [(768,)] * 25
    found = []
    for shapes in (matrices, others):
        made = [torch.empty(shape, dtype=dtype, device=CUDA) for shape in shapes]
        found.append([torch.nn.Parameter(X) for X in made])
        for p in found[-1]:
            p.grad = torch.empty_like(p)
    return found


def launched_by_a_step(optimizer):
    """Operations and reads of the third step."""
    for _ in range(2):
        optimizer.step()
    with counting() as found:
        optimizer.step()
    return found.launched, found.reads + found.checks


# -- what is counted of a large matrix, by tests and benchmarks ------------------------------------

N, K = 8192, 512
CALLS_OF_A_RANK = {
    "range_finder": lambda A: lowrank.range_finder(A, K, rng=0),
    "range_finder, q = 2": lambda A: lowrank.range_finder(A, K, power_iterations=2, rng=0),
    "range_finder, unchecked": lambda A: lowrank.range_finder(A, K, check_finite=False, rng=0),
    "qb": lambda A: lowrank.qb(A, K, rng=0),
    "svd, q = 0": lambda A: lowrank.svd(A, K, oversampling=0, power_iterations=0, rng=0),
    "svd": lambda A: lowrank.svd(A, K, oversampling=0, rng=0),
    "qr": lambda A: lowrank.qr(A[:, :K]),
    "qr, narrow": lambda A: lowrank.qr(A[:, :128]),
}


def launched(call, answers=()):
    """Operations and reads of a call on an 8192×8192 matrix; what panels share was made before."""
    answers = list(answers)
    with without_numbers():
        for _ in range(2):
            now.answers = itertools.chain(answers, itertools.repeat(1.0))
            with counting() as counts:
                call(torch.empty(N, N, device=CUDA))
    return counts


def launched_to_a_tolerance(blocks):
    """The same for so many blocks of 128 columns, and for one of them.

    Each takes 0.36 of the energy that is left, of a norm of a half. Top blocks are zero.
    """

    def counted(blocks):
        def call(A):
            options = {"rtol": 1e-3, "block_size": 128, "rng": 0}
            with warnings.catch_warnings(action="ignore"):
                found = lowrank.range_finder(A, 128 * blocks, **options)
            assert (found.rank, len(found.history)) == (128 * blocks, blocks + 1)

        before = [0.5 * 0.8**block for block in range(blocks)]
        numbers = (number for error in before for number in (0.0, 0.0, 0.8 * error, 0.6 * error))
        return launched(call, [0.5, *numbers])

    counts, more = counted(blocks), counted(blocks + 1)
    counts.launched_per_block = more.launched - counts.launched
    counts.reads_per_block = more.reads + more.checks - counts.reads - counts.checks
    return counts
