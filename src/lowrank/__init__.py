"""Low-rank bases and factorizations, to a given rank or a certified tolerance."""

from lowrank import bounds, compress, gallery
from lowrank._factorizations.cur import cur
from lowrank._factorizations.eigh import eigh
from lowrank._factorizations.interpolative import interpolative
from lowrank._factorizations.nystrom import nystrom
from lowrank._factorizations.qb import qb
from lowrank._factorizations.svd import svd
from lowrank._linalg.certificate import residual_norm
from lowrank.householder import HouseholderQR, householder_qr, qr
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
