"""Low-rank bases and factorizations, to a given rank or a certified tolerance."""

from lowrank import bounds, compress, gallery
from lowrank._certificate import residual_norm
from lowrank.cur import cur
from lowrank.eigh import eigh
from lowrank.householder import HouseholderQR, householder_qr, qr
from lowrank.interpolative import interpolative
from lowrank.nystrom import nystrom
from lowrank.qb import qb
from lowrank.rangefinder import RangeFinder, range_finder
from lowrank.results import (
    ConvergenceWarning,
    CURResult,
    EighResult,
    ErrorEstimate,
    IDResult,
    Look,
    QBResult,
    QRResult,
    RangeFinderResult,
    Status,
    SVDResult,
    load,
)
from lowrank.rows import Progress, RowBlocks
from lowrank.streaming import SketchedMatrix
from lowrank.svd import svd

__version__ = "0.1.0"

__all__ = [
    "CURResult",
    "ConvergenceWarning",
    "EighResult",
    "ErrorEstimate",
    "HouseholderQR",
    "IDResult",
    "Look",
    "Progress",
    "QBResult",
    "QRResult",
    "RangeFinder",
    "RangeFinderResult",
    "RowBlocks",
    "SVDResult",
    "SketchedMatrix",
    "Status",
    "__version__",
    "bounds",
    "compress",
    "cur",
    "eigh",
    "gallery",
    "householder_qr",
    "interpolative",
    "load",
    "nystrom",
    "qb",
    "qr",
    "range_finder",
    "residual_norm",
    "svd",
]
