"""QR factorizations, tall and square, and one that grows."""

import lowrank

from .common import OnEachLibrary, wait


class Tall(OnEachLibrary):
    spectrum, shape = "gaussian", (20000, 64)

    def time_qr(self, kind):
        lowrank.qr(self.A)
        wait(kind)


class Square(Tall):
    shape = (600, 600)


class Growth(OnEachLibrary):
    spectrum, shape = "gaussian", (4000, 128)

    def time_extend(self, kind):
        F = lowrank.householder_qr(self.A[:, :16])
        for start in range(16, self.shape[1], 16):
            F.extend(self.A[:, start : start + 16])
        wait(kind)
