"""The local interaction basis: directions of a layer ordered and scaled by what they do to the next layer's.

```python
bases = interaction_bases([x0, x1, y], [jacobians(first, x0), jacobians(second, x1)])
c = bases[0].to_basis(x0)                  # (rows, kept): directions with no effect downstream are gone
bases[0].from_basis(c)                     # activations that the rest of the network answers as it answers x0
```

From the last layer back (Bushnaq et al. 2024, The Local Interaction Basis, section on its construction): activations
are centred and whitened, directions without variance left out; there M is the mean over data of J^T J, where J is the
Jacobian of the next layer's basis coordinates by the whitened activations; its eigenvectors, the right singular
vectors of all Jacobians stacked, are the basis, each coordinate scaled by the root of its eigenvalue, and those whose
eigenvalue is zero are left out. The last layer's basis is its principal components.

Whitening makes it a property of what is computed: with hidden activations replaced by any invertible linear image of
them, read by the next layer through the inverse, coordinates stay what they were, up to sign and order, where
eigenvalues differ. Directions without effect do not matter to it however they correlate with the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.errors import require

Layer = Callable[[Tensor], Tensor]
"""(rows, d) -> (rows, d of the next layer), differentiable, each row by itself."""
VARIANCE_FLOOR = 1e-8
"""Directions with less variance than this share of the largest have none."""
EFFECT_FLOOR = 1e-8
"""Directions whose eigenvalue is a smaller share of the largest have no effect: 1e-4 in singular values, where float32
rounds at 1e-7."""


@dataclass(frozen=True, eq=False)
class InteractionBasis:
    """A linear basis of a layer's activations, in which they are read and written."""

    mean: Float[Tensor, " d"]
    """Activations that have all coordinates zero."""
    reads: Float[Tensor, "kept d"]
    """Coordinates are reads (x - mean)."""
    writes: Float[Tensor, "d kept"]
    """Direction j, column j, moves coordinate j by 1 and no other."""
    importance: Float[Tensor, " kept"]
    """Falling. Of the local interaction basis M's eigenvalues: the mean squared change of the next layer's coordinates
    for one standard deviation along a direction, and the variance of the coordinate; of others the variance alone."""
    metric: Float[Tensor, "d d"]
    """v^T metric v is the mean squared change of the next layer's interaction basis for a small step v; the
    identity where no next layer is known."""

    def to_basis(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows kept"]:
        """Coordinates."""
        return (x.to(self.reads) - self.mean) @ self.reads.mT

    def from_basis(self, c: Float[Tensor, "*rows kept"]) -> Float[Tensor, "*rows d"]:
        """Activations with these coordinates, and what was left out at its mean."""
        return self.mean + c.to(self.writes) @ self.writes.mT


def jacobians(layer: Layer, x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows outputs d"]:
    """d layer(x)_i / d x_j at each row, by one backward pass an output over all rows."""
    x = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        y = layer(x)
        of = [torch.autograd.grad(y[:, i].sum(), x, retain_graph=True)[0] for i in range(y.shape[1])]
    return torch.stack(of, 1)


def interaction_bases(
    activations: Sequence[Float[Tensor, "_ _"]], steps: Sequence[Float[Tensor, "_ _ _"]]
) -> list[InteractionBasis]:
    """The local interaction basis of each of several consecutive layers.

    Args:
        activations: (rows, d_l) of layers 0 to L.
        steps: Jacobians (rows, d_{l+1}, d_l) of layers 1 to L by the layer before; their rows need not be those of
            the activations.

    Raises:
        UserError: other numbers of layers or sizes, fewer than two rows, activations that do not vary or have no
            effect.
    """
    sizes = [x.shape[1] for x in activations]
    given, wanted = [tuple(j.shape[1:]) for j in steps], list(zip(sizes[1:], sizes[:-1], strict=True))
    require(given == wanted, f"Jacobians between layers of sizes {sizes} must be {wanted}, got {given}")
    found = [principal_basis(activations[-1])]
    for x, jacobian in zip(reversed(activations[:-1]), reversed(steps), strict=True):
        found.append(interaction_basis(x, jacobian, found[-1]))
    return found[::-1]


def interaction_basis(
    x: Float[Tensor, "rows d"], jacobian: Float[Tensor, "places outputs d"], following: InteractionBasis
) -> InteractionBasis:
    """The local interaction basis of one layer, given the next layer's.

    Raises:
        UserError: fewer than two rows, activations that do not vary or have no effect.
    """
    mean, variances, directions = _principal(x)
    root = directions * variances.sqrt()  # (d, r): whitened coordinates to activations
    step = torch.einsum("kn,pnd->pkd", following.reads, jacobian.double())
    metric = torch.einsum("pkd,pke->de", step, step) / len(step)
    effects, vectors = torch.linalg.eigh(root.mT @ metric @ root)
    require(bool(effects[-1] > 0), "no direction of these activations has an effect on the next layer")
    kept = (effects > EFFECT_FLOOR * effects[-1]).nonzero()[:, 0].flip(0)
    scale, vectors = effects[kept].sqrt(), vectors[:, kept]
    reads = scale[:, None] * (vectors.mT @ (directions / variances.sqrt()).mT)
    return InteractionBasis(mean, reads, root @ vectors / scale, effects[kept], metric)


def principal_basis(x: Float[Tensor, "rows d"]) -> InteractionBasis:
    """Principal components, unscaled; directions without variance are left out.

    Raises:
        UserError: fewer than two rows, or rows that do not vary.
    """
    mean, variances, directions = _principal(x)
    return InteractionBasis(mean, directions.mT, directions, variances, torch.eye(len(mean), dtype=torch.float64))


def rotated_basis(x: Float[Tensor, "rows d"], *, seed: int) -> InteractionBasis:
    """A random orthogonal basis, the same for all layers of a size: a stream that passes by keeps its coordinates."""
    generator = torch.Generator().manual_seed(seed)
    q, r = torch.linalg.qr(torch.randn(x.shape[1], x.shape[1], dtype=torch.float64, generator=generator))
    return _orthogonal(x, (q * r.diagonal().sign()).mT)


def neuron_basis(x: Float[Tensor, "rows d"]) -> InteractionBasis:
    """The activations' own basis, about their mean."""
    return _orthogonal(x, torch.eye(x.shape[1], dtype=torch.float64))


def _orthogonal(x: Tensor, reads: Tensor) -> InteractionBasis:
    x = x.double()
    variances = ((x - x.mean(0)) @ reads.mT).var(0)
    order = variances.argsort(descending=True, stable=True)
    reads = reads[order]
    return InteractionBasis(x.mean(0), reads, reads.mT, variances[order], torch.eye(x.shape[1], dtype=torch.float64))


def _principal(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (d,), variances (r,) falling, directions (d, r)."""
    require(len(x) > 1, f"a basis needs at least two rows of activations, got {len(x)}")
    x = x.detach().double()
    centred = x - x.mean(0)
    variances, directions = torch.linalg.eigh(centred.mT @ centred / (len(x) - 1))
    require(bool(variances[-1] > 0), "these activations do not vary: all rows are alike")
    kept = (variances > VARIANCE_FLOOR * variances[-1]).nonzero()[:, 0].flip(0)
    return x.mean(0), variances[kept], directions[:, kept]
