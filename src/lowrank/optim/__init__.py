"""Any torch optimizer with low-rank state: needs PyTorch, and is imported explicitly."""

from lowrank.optim._lowrank import LowRank
from lowrank.optim._momentum import LowRankMomentum
from lowrank.optim._muon import LowRankMuon
from lowrank.optim._report import Groups, Report, Row, select

__all__ = ["Groups", "LowRank", "LowRankMomentum", "LowRankMuon", "Report", "Row", "select"]
