"""Gaussian discriminants and least squares for many label vectors on the same rows, in closed form."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from toolkit.errors import require
from toolkit.heads import LinearHeads
from toolkit.logistic import Design

# Variance within classes that counts, as a share of all: five digits of it survive a difference in float64.
_LEAST = 1e-10


def class_means(
    data: Design, labels: Int[Tensor, "rows problems"], classes: int
) -> tuple[Float[Tensor, "problems classes d"], Float[Tensor, "problems classes"]]:
    """Weighted mean of each class less the rows' mean, in the design's eigenbasis, and each class's share.

    A class without rows has share 0 and mean 0.
    """
    problems, dtype = labels.shape[1], data.Z.dtype
    shares = torch.empty(problems, classes, dtype=dtype, device=labels.device)
    means = torch.empty(problems, classes, data.Z.shape[1], dtype=dtype, device=labels.device)
    for c in range(classes):
        members = (labels == c).to(dtype) * data.weights[:, None]  # (rows, problems)
        shares[:, c] = members.sum(0)
        means[:, c] = members.mT @ data.Z / shares[:, c, None].clamp(min=torch.finfo(dtype).tiny)
    return means, shares


def discriminants(data: Design, labels: Int[Tensor, "rows problems"], *, classes: int, shrinkage: float) -> LinearHeads:
    """Linear discriminants with the within-class covariance shrunk towards a multiple of the identity.

    (1 - shrinkage) Sigma_within + shrinkage tr(Sigma_within) / d I; shrinkage 1 leaves the differences of means. The
    covariance within classes is that of all rows less that between the means, so Woodbury's identity gives its inverse
    for every problem from one eigendecomposition. It is a difference, so the design should be float64; a mean variance
    within classes below 1e-10 of all variance is taken for that.

    Raises:
        UserError: no variance within classes, and shrinkage 0.
    """
    means, shares = class_means(data, labels, classes)  # (P, C, d), (P, C)
    d = data.Z.shape[1]
    between = (shares * means.square().sum(2)).sum(1)  # (P,)
    total = data.variances.sum()
    require(
        shrinkage > 0 or bool((total - between > _LEAST * total).all()),
        "shrinkage=0, but rows of a class are all alike: their covariance has no inverse; give a shrinkage > 0",
    )
    isotropic = torch.maximum(total - between, _LEAST * total) / d
    diagonal = (1 - shrinkage) * data.variances + shrinkage * isotropic[:, None]  # (P, d)
    limits = torch.finfo(diagonal.dtype)
    diagonal = diagonal.clamp(min=max(limits.eps * float(diagonal.max()), limits.tiny))
    scaled = means / diagonal[:, None]  # (P, C, d)
    coefficients = scaled
    if shrinkage < 1:
        # (A - s M^T diag(p) M)^-1 M^T = A^-1 M^T (I - s diag(p) M A^-1 M^T)^-1, with s = 1 - shrinkage
        eye = torch.eye(classes, dtype=scaled.dtype, device=scaled.device)
        middle = eye - (1 - shrinkage) * shares[:, :, None] * (scaled @ means.mT)  # (P, C, C)
        coefficients = torch.linalg.pinv(middle.mT) @ scaled
    offsets = shares.log() - 0.5 * (coefficients * means).sum(2)
    return LinearHeads.rotated(data, _contrast(coefficients), _contrast(offsets))


def _contrast(values: Tensor) -> Tensor:
    """Two classes need one output, their difference."""
    return values[:, 1:] - values[:, :1] if values.shape[1] == 2 else values


def least_squares(
    data: Design, labels: Int[Tensor, "rows problems"], *, classes: int, l2: Float[Tensor, " problems"]
) -> LinearHeads:
    """Ridge regression on +1 and -1: min sum_r w_r (y - x b - c)^2 / 2 + l2 / 2 |b|^2 for each class.

    Directions without variance or penalty get coefficient 0.
    """
    means, shares = class_means(data, labels, classes)
    targets = 2 * shares[..., None] * means  # weighted sum of (rows less mean) * (+1 or -1), (P, C, d)
    curvature = (data.variances + l2[:, None])[:, None]  # (P, 1, d)
    least = data.variances.max() * len(data.variances) * torch.finfo(targets.dtype).eps
    coefficients = torch.where(curvature > least, targets / curvature, 0.0)
    offsets = 2 * shares - 1
    if classes == 2:
        coefficients, offsets = coefficients[:, 1:], offsets[:, 1:]
    return LinearHeads.rotated(data, coefficients, offsets)
