"""Optimizers with low-rank state. Needs PyTorch; import it explicitly: ``import lowrank.optim``."""

from lowrank.optim._lowrank import LowRank
from lowrank.optim._momentum import LowRankMomentum
from lowrank.optim._muon import LowRankMuon
from lowrank.optim._report import Groups, Report, Row, select

__all__ = ["Groups", "LowRank", "LowRankMomentum", "LowRankMuon", "Report", "Row", "select"]
