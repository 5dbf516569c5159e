"""QR factorizations, and one that grows."""

import numpy as np

import lowrank


class QR:
    params = (("20000x64", "600x600"), ("float32", "float64"))
    param_names = ("shape", "dtype")

    def setup(self, shape, dtype):
        m, n = map(int, shape.split("x"))
        self.A = np.random.default_rng(0).standard_normal((m, n), dtype=dtype)

    def time_qr(self, shape, dtype):
        lowrank.qr(self.A)

    def time_householder_qr(self, shape, dtype):
        lowrank.householder_qr(self.A)

    def time_numpy_qr(self, shape, dtype):
        np.linalg.qr(self.A)

    def time_extend_by_blocks(self, shape, dtype):
        F = lowrank.householder_qr(self.A[:, :16])
        for start in range(16, min(self.A.shape[1], 112), 16):
            F.extend(self.A[:, start : start + 16])
