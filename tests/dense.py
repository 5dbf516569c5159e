"""Steps of the optimizers on dense matrices in double precision: what a step is, by definition.

Of one weight W (k×M, with the short side first), written from the formulas of the docstrings. Only
the bases are taken from the optimizer.
"""

import math

import torch


class DenseLowRank:
    """LowRank around AdamW, with the scaled residual and moments that are rotated."""

    def __init__(self, W, lr, betas, eps, weight_decay, scale, maximize=False, left=True):
        del left
        self.W, self.lr, self.betas, self.eps = W.double().clone(), lr, betas, eps
        self.decay, self.scale, self.sign = weight_decay, scale, -1.0 if maximize else 1.0
        self.m = self.v = self.Q = None
        self.steps, self.residual = 0, 0.0

    def step(self, G, Q):
        G, Q = G.double(), Q.double()
        (k, r), (beta1, beta2) = Q.shape, self.betas
        if self.m is None:
            self.m = self.v = torch.zeros(r, G.shape[1], dtype=torch.float64)
        elif not torch.equal(Q, self.Q):
            C = Q.T @ self.Q
            bias1, bias2 = 1 - beta1**self.steps, 1 - beta2**self.steps
            mean, square = self.m / bias1, self.v / bias2
            outside = ((G - self.Q @ (self.Q.T @ G)) ** 2).sum(0) / (k - r)
            moved = (C**2 @ (square - mean**2) + (C @ mean) ** 2).abs()
            self.v = bias2 * (moved + (1 - (C**2).sum(1, keepdim=True)).clamp(min=0) * outside)
            self.m = C @ self.m
        self.Q, self.steps = Q, self.steps + 1
        R = Q.T @ G
        g = self.sign * R
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g**2
        mean, square = self.m / (1 - beta1**self.steps), self.v / (1 - beta2**self.steps)
        change = -self.lr * mean / (square.sqrt() + self.eps)
        rest = G - Q @ R
        largest = torch.maximum(R.norm(dim=0), rest.norm(dim=0) * (r / (k - r)) ** 0.5 / 3)
        S = rest * (change.norm(dim=0) / (self.lr * largest))
        size = float(S.norm())
        if self.residual and size > 1.01 * self.residual:
            S *= 1.01 * self.residual / size
            size = 1.01 * self.residual
        self.residual = size
        self.W = (1 - self.lr * self.decay) * self.W
        self.W += self.scale * (Q @ change - self.sign * self.lr * S)


class DenseMuon:
    """LowRankMuon, of which the rows of the weight are the columns of W unless it is `left`."""

    def __init__(self, W, lr, betas, eps, weight_decay, scale, maximize=False, left=True):
        del betas, eps
        self.W, self.lr, self.decay, self.scale = W.double().clone(), lr, weight_decay, scale
        self.sign, self.along = -1.0 if maximize else 1.0, 1 if left else 0
        self.beta = self.square_beta = 0.95
        self.M, self.steps, self.ratio, self.squares = torch.zeros_like(self.W), 0, 1.0, 0.0

    def step(self, G, Q):
        G, Q, beta = G.double(), Q.double(), self.beta
        self.steps += 1
        D = beta * self.M + (1 - beta) * G
        self.M = Q @ (Q.T @ D)
        X = (1 - beta) * G + beta * D
        U = X / X.norm()
        for _ in range(5):
            A = U @ U.T
            U = 3.4445 * U - 4.7750 * A @ U + 2.0315 * A @ A @ U
        if Q.shape[1] == 0:
            longer = math.sqrt((1 + beta) / (1 - beta))
        else:
            share = 0.05 / (1 - 0.95**self.steps)
            self.ratio += share * ((Q.T @ G).norm() / (Q.T @ X).norm() - self.ratio)
            longer = max(1.0, float(self.ratio))
            U = U - (1 - 1 / longer) * Q @ (Q.T @ U)
        share = (1 - self.square_beta) / (1 - self.square_beta**self.steps)
        self.squares += share * ((longer * U).square().sum(self.along, keepdim=True) - self.squares)
        new = U / self.squares.sqrt()
        new = longer * new * (U.norm() / new.norm())
        self.W = (1 - self.lr * self.decay) * self.W
        self.W -= self.sign * self.lr * self.scale * max(self.W.shape) ** 0.5 * new


class DenseMomentum:
    """LowRankMomentum."""

    def __init__(self, W, lr, betas, eps, weight_decay, scale, maximize=False, left=True):
        del left
        self.W, self.lr, self.betas, self.eps = W.double().clone(), lr, betas, eps
        self.decay, self.scale, self.sign = weight_decay, scale, -1.0 if maximize else 1.0
        self.M, self.V = torch.zeros_like(self.W), torch.zeros_like(self.W)
        self.steps = 0

    def step(self, G, Q):
        G, Q, (beta1, beta2) = G.double(), Q.double(), self.betas
        self.steps += 1
        after = Q @ (Q.T @ (beta1 * self.M + (1 - beta1) * G))
        U = G + beta1 / (1 - beta1) * (self.M - after)
        self.M = after
        self.V = beta2 * self.V + (1 - beta2) * G**2
        mean = self.V / (1 - beta2**self.steps)
        a = 1 / (mean.mean(1, keepdim=True).sqrt() + self.eps)
        b = (mean.mean() / mean.mean(0, keepdim=True)).sqrt()
        spike = max(1.0, float((a * G * b).square().mean().sqrt()))
        self.W = (1 - self.lr * self.decay) * self.W
        self.W -= self.sign * self.lr * self.scale / spike * a * U * b
