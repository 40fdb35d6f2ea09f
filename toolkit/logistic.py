"""Logistic regressions that share their rows: one eigendecomposition, one batched optimisation.

In coordinates in which the loss's curvature bound (Bohning 1992) is the identity, every problem is well conditioned,
whatever the rows' spectrum and each problem's penalty, and a few iterations of matrix products solve all of them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.heads import LinearHeads
from toolkit.lbfgs import Minimised, minimise

# Rows of the logits held at a time, (rows, problems * outputs): 64 MB in float32.
_ELEMENTS = 1 << 24
# Log-odds of about 1e-14.
_NEVER = -32.0


@dataclass(frozen=True)
class Design:
    """Rows in the eigenbasis of their weighted covariance."""

    Z: Float[Tensor, "rows d"]
    """Centred rows times `basis`."""
    weights: Float[Tensor, " rows"]
    """Weights of the rows, summing to 1."""
    mean: Float[Tensor, " d"]
    """Weighted mean of the rows."""
    basis: Float[Tensor, "d d"]
    """Eigenvectors of their covariance, in columns."""
    variances: Float[Tensor, " d"]
    """Its eigenvalues."""


def design(X: Float[Tensor, "rows d"], weights: Float[Tensor, " rows"] | None = None) -> Design:
    """Centre and rotate rows; weights are normalised to a sum of 1. Constant columns become exactly 0."""
    w = (
        torch.full((len(X),), 1 / len(X), dtype=X.dtype, device=X.device)
        if weights is None
        else weights / weights.sum()
    )
    # a mean that rounds would leave a constant column a slope where there is no penalty
    mean = torch.where((X[0] == X).all(0), X[0], w @ X)
    centred = X - mean
    covariance = (centred * w[:, None]).mT @ centred
    variances, basis = torch.linalg.eigh(covariance.double())
    basis = basis.to(X.dtype)
    return Design(centred @ basis, w, mean, basis, variances.clamp(min=0).to(X.dtype))


@dataclass(frozen=True)
class Logistic:
    """Regressions of several label vectors on the same rows."""

    heads: LinearHeads
    """Coefficients and intercepts for raw rows."""
    gradient: Float[Tensor, " problems"]
    """Largest entry of the gradient of each objective with respect to coefficients of the centred, rotated rows."""
    losses: Float[Tensor, " problems"]
    """Penalised objectives."""
    iterations: int
    """Of the slowest problem."""


def fit_logistic(
    data: Design,
    labels: Int[Tensor, "rows problems"],
    *,
    classes: int,
    l2: Float[Tensor, " problems"],
    shares: Float[Tensor, "problems classes"] | None = None,
    tolerance: float = 1e-5,
    most: int = 500,
) -> Logistic:
    """Minimise sum_r w_r loss_r + l2 / 2 |coefficients|^2 for each column of labels, intercepts free.

    loss_r is the cross-entropy in nats; `shares` multiplies it by class. scikit-learn's C is 1 / (rows * l2). A class
    without rows gets an intercept of _NEVER.
    """
    problem = _Problem(data, labels, classes, l2, shares)
    found = minimise(problem, problem.start(), tolerance=tolerance, most=most)
    return problem.unscaled(found)


class _Problem:
    """Values and gradients in scaled coordinates: u = coefficient * sqrt(bound * variance + l2)."""

    def __init__(self, data: Design, labels: Tensor, classes: int, l2: Tensor, shares: Tensor | None) -> None:
        self.data, self.labels, self.l2, self.shares = data, labels, l2, shares
        self.outputs = 1 if classes == 2 else classes
        bound = 0.25 if classes == 2 else 0.5
        heaviest = 1.0 if shares is None else shares.amax(1)[:, None]
        # The smallest scale is that of a direction without variance or penalty, in which nothing moves.
        curvature = heaviest * bound * data.variances + l2[:, None]  # (problems, d)
        self.scale = curvature.clamp(min=1e-12 * float(curvature.max())).rsqrt()
        free = torch.full((len(l2), 1), bound**-0.5, dtype=self.scale.dtype, device=self.scale.device)
        self.intercept_scale = free / (heaviest**0.5 if shares is not None else 1.0)

    def start(self) -> Tensor:
        """Zeros, but for classes without rows, whose intercept would take long on its way to minus infinity."""
        u = torch.zeros(len(self.l2), self.outputs, self.data.Z.shape[1] + 1, dtype=self.data.Z.dtype).to(
            self.l2.device
        )
        classes = max(self.outputs, 2)
        absent = torch.stack([~(self.labels == c).any(0) for c in range(classes)], 1).to(u.dtype)  # (problems, classes)
        offsets = absent[:, 1:] - absent[:, :1] if self.outputs == 1 else absent
        u[..., -1] = _NEVER * offsets / self.intercept_scale
        return u.flatten(1)  # (problems, outputs * (d + 1))

    def __call__(self, parameters: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        problems, d = len(which), self.data.Z.shape[1]
        u = parameters.view(problems, self.outputs, d + 1)
        scale, own = self.scale[which][:, None], self.intercept_scale[which]
        b = u[..., :d] * scale  # (problems, outputs, d)
        c = u[..., d] * own  # (problems, outputs)
        value, slope_b, slope_c = self._sums(b, c, which)
        l2 = self.l2[which]
        value = value + l2 / 2 * b.square().sum((1, 2))
        slope_b = (slope_b + l2[:, None, None] * b) * scale
        return value, torch.cat([slope_b, (slope_c * own)[..., None]], 2).flatten(1)  # (problems, outputs * (d + 1))

    def _sums(self, b: Tensor, c: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted losses and their gradients, over blocks of rows."""
        problems, outputs, d = b.shape
        B, Z = b.flatten(0, 1), self.data.Z  # (problems * outputs, d)
        value, slope_b, slope_c = b.new_zeros(problems), torch.zeros_like(B), torch.zeros_like(c)
        block = max(1, _ELEMENTS // len(B))
        labels = self.labels if problems == self.labels.shape[1] else self.labels[:, which]
        for start in range(0, len(Z), block):
            rows = slice(start, start + block)
            logits = torch.addmm(c.flatten(), Z[rows], B.mT).view(-1, problems, outputs)  # (block, problems, outputs)
            losses, residual = self._residual(logits, labels[rows], which)
            w = self.data.weights[rows]
            value += w @ losses
            residual = (residual * w[:, None, None]).flatten(1)  # (block, problems * outputs)
            slope_b += residual.mT @ Z[rows]
            slope_c += residual.sum(0).view(problems, outputs)
        return value, slope_b.view(problems, outputs, d), slope_c

    def _residual(self, logits: Tensor, labels: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropies (block, problems) and their derivatives by the logits."""
        if self.outputs == 1:
            z, y = logits[..., 0], labels.to(logits.dtype)
            losses = torch.nn.functional.softplus(z) - y * z
            residual = (torch.sigmoid(z) - y)[..., None]
        else:
            log_p = logits.log_softmax(-1)
            losses = -log_p.gather(-1, labels[..., None])[..., 0]
            residual = log_p.exp()
            residual.scatter_add_(-1, labels[..., None], -torch.ones_like(logits[..., :1]))
        if self.shares is not None:
            share = self.shares[which].expand(len(labels), -1, -1).gather(-1, labels[..., None])  # (block, problems, 1)
            losses, residual = losses * share[..., 0], residual * share
        return losses, residual

    def unscaled(self, found: Minimised) -> Logistic:
        d = self.data.Z.shape[1]
        u = found.parameters.view(-1, self.outputs, d + 1)
        b = u[..., :d] * self.scale[:, None]
        coefficients = b @ self.data.basis.mT  # (problems, outputs, d)
        intercepts = u[..., d] * self.intercept_scale - coefficients @ self.data.mean
        value, slope = self(found.parameters, torch.arange(len(u), device=u.device))
        slope = slope.view(-1, self.outputs, d + 1)
        gradient = torch.maximum(
            (slope[..., :d] / self.scale[:, None]).abs().amax((1, 2)),
            (slope[..., d] / self.intercept_scale).abs().amax(1),
        )
        heads = LinearHeads(coefficients, intercepts, found.iterations, bool(found.exhausted.any()))
        return Logistic(heads, gradient, value, found.iterations)
