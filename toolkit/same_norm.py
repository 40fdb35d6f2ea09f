"""Changes of given lengths, one a row of activations: what an error is held against.

```python
e = sae(x) - x
noise = isotropic(e.norm(dim=1), x.shape[1], draws=8, seed=0)  # (draws, rows, d), each as long as its row's error
like = from_covariance(e.norm(dim=1), torch.cov(X.mT), draws=8, seed=0)
```

A rotation of an error by an orthogonal matrix drawn from all of them is an isotropic draw of its length. Two smaller
groups leave something of the error as it is: `rotated_about` its part along a given row, `rotated_in_bands` its energy
in each band of principal directions.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.errors import require

_TRIES = 100
"""Times that another row is drawn where the one drawn is the row itself."""
_NONE = 1e-12
"""Share of the largest eigenvalue below which one is rounding."""


def isotropic(norms: Float[Tensor, " rows"], d: int, *, draws: int, seed: int) -> Float[Tensor, "draws rows d"]:
    """Directions of uniform law on the sphere of d dimensions."""
    return at_norms(_normal((draws, len(norms), d), seed), norms)


def from_covariance(
    norms: Float[Tensor, " rows"], covariance: Float[Tensor, "d d"], *, draws: int, seed: int
) -> Float[Tensor, "draws rows d"]:
    """Draws from N(0, covariance), each brought to its row's length.

    Raises:
        UserError: a covariance of 0.
    """
    values, vectors = _axes(covariance)
    z = _normal((draws, len(norms), len(values)), seed)
    return at_norms((z * values.sqrt()) @ vectors.mT, norms)


def towards(
    x: Float[Tensor, "rows d"],
    norms: Float[Tensor, " rows"],
    others: Float[Tensor, "others d"],
    *,
    draws: int,
    seed: int,
) -> Float[Tensor, "draws rows d"]:
    """Steps from each row towards others drawn at random; they go past those that lie nearer than the length.

    Raises:
        UserError: a row that every one of many others drawn is equal to.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(others), (draws, len(x)), generator=generator)
    for _ in range(_TRIES):
        none = (others[chosen] == x).all(2)
        if not none.any():
            break
        chosen[none] = torch.randint(len(others), (int(none.sum()),), generator=generator)
    require(not bool(none.any()), "activations are nearly all the same: there are no steps from one to another")
    return at_norms(others[chosen].double() - x.double(), norms)


def of_other_rows(
    norms: Float[Tensor, " rows"], errors: Float[Tensor, "others d"], *, draws: int, seed: int
) -> Float[Tensor, "draws rows d"]:
    """Errors made at other rows, drawn at random and brought to this row's length.

    They have all that errors have in common; what they lack is that they were made here.

    Raises:
        UserError: no error is other than 0.
    """
    some = errors[errors.norm(dim=1) > 0]
    require(len(some) > 0, "no row has an error: there is none to put in another's place")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(some), (draws, len(norms)), generator=generator)
    return at_norms(some[chosen].double(), norms)


@dataclass(frozen=True)
class Subspace:
    """The directions that hold most of the energy of some rows."""

    basis: Float[Tensor, "d m"]
    """Orthonormal columns, most energy first."""
    energies: Float[Tensor, " m"]
    """Mean square of the rows along each."""
    share: float
    """Of the rows' mean square length that they hold together."""

    def within(
        self, norms: Float[Tensor, " rows"], *, draws: int, seed: int, shaped: bool = False
    ) -> Float[Tensor, "draws rows d"]:
        """Draws inside: of uniform direction, or `shaped` as the rows are, by their second moments."""
        z = _normal((draws, len(norms), len(self.energies)), seed)
        scaled = z * self.energies.sqrt() if shaped else z
        return at_norms(scaled @ self.basis.mT, norms)


def subspace(rows: Float[Tensor, "rows d"], *, energy: float = 0.9) -> Subspace:
    """The fewest principal directions that hold a share `energy` of the rows' squares.

    Principal directions are those of the second moment about 0, so that what all rows share counts too.

    Raises:
        UserError: a share outside (0, 1], rows that are all 0.
    """
    require(0 < energy <= 1, f"energy is a share of the rows' squares, in (0, 1], got {energy:g}")
    x = rows.double()
    values, vectors = _axes(x.mT @ x / len(x))
    held = values.cumsum(0) / values.sum()
    count = min(int((held < energy - 1e-12).sum()) + 1, int((values > 0).sum()))
    return Subspace(vectors[:, :count], values[:count], float(held[count - 1]))


def rotated_about(
    errors: Float[Tensor, "rows d"], axes: Float[Tensor, "rows d"], *, draws: int, seed: int
) -> Float[Tensor, "draws rows d"]:
    """Each error under rotations that leave its row's axis where it is, drawn uniformly: O(d - 1).

    Its length and its part along the axis are kept; with the activation for an axis, so is the length of the two
    together and the cosine between them.
    """
    e, axis = errors.double(), torch.nn.functional.normalize(axes.double(), dim=1)
    along = (e * axis).sum(1, keepdim=True) * axis
    z = _normal((draws, *e.shape), seed)
    z = z - (z * axis).sum(2, keepdim=True) * axis
    return (along + at_norms(z, (e - along).norm(dim=1)).double()).to(errors.dtype)


def rotated_in_bands(
    errors: Float[Tensor, "rows d"], covariance: Float[Tensor, "d d"], *, size: int, draws: int, seed: int
) -> Float[Tensor, "draws rows d"]:
    """Each error under rotations inside bands of the covariance's principal directions, drawn uniformly: O(size)^bands.

    Bands are `size` neighbours in the order of variance, the last one perhaps fewer. Kept are the length, and the
    energy in each band: how far the error lies along directions in which activations vary much or little.
    """
    require(size >= 1, f"a band holds at least one principal direction, got size={size}")
    _, vectors = _axes(covariance)
    coordinates = errors.double() @ vectors
    z = _normal((draws, *coordinates.shape), seed)
    parts = [
        at_norms(drawn, own.norm(dim=1)).double()
        for drawn, own in zip(z.split(size, 2), coordinates.split(size, 1), strict=True)
    ]
    return (torch.cat(parts, 2) @ vectors.mT).to(errors.dtype)


def at_norms(rows: Float[Tensor, "draws rows d"], norms: Float[Tensor, " rows"]) -> Float[Tensor, "draws rows d"]:
    """Each row in its direction and of the length wanted, in the lengths' own precision."""
    return (rows * (norms.double()[:, None] / rows.norm(dim=2, keepdim=True).clamp(min=1e-300))).to(norms.dtype)


def _normal(shape: tuple[int, ...], seed: int) -> Float[Tensor, "..."]:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _axes(moment: Float[Tensor, "d d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Eigenvalues, largest first, and eigenvectors in columns; what is rounding is 0."""
    values, vectors = torch.linalg.eigh(moment.double())
    values, vectors = values.flip(0), vectors.flip(1)
    require(bool(values[0] > 0), "the rows do not differ from one another: their covariance is 0")
    return torch.where(values > _NONE * values[0], values, 0), vectors
