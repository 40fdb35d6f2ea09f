"""Families of directions whose sensitivity is compared, a few at every place."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from experiments.network.ground import Ground
from experiments.network.latent_directions import Gaussian, among, as_far_along, dictionary
from toolkit.sensitivity import sensitive_directions
from toolkit.sphere_search import unit_rows

TOP, NEXT = "most sensitive", "next sensitive"
"""First eigenvector of the Fisher information of a place, and those that follow."""
ON, OFF = "SAE, on there", "SAE, off there"
PCA = "PCA"
MEANS = "difference of means"
"""Of two documents' activations."""
LIKE, DATA, ANY = "random, like decoders", "random, like activations", "random, isotropic"
MATCHED = "random, as far along x as those on"
"""LIKE turned to lie as far along the activation x as ON."""
FAMILIES = (TOP, NEXT, ON, OFF, PCA, MEANS, LIKE, DATA, ANY, MATCHED)
LEADING = 16
"""Principal directions that some are drawn from."""
LONG = 20
"""Rows of a document whose mean counts; where fewer than two have as many, the two longest's do."""


def families(g: Ground, count: int, *, seed: int) -> Mapping[str, Float[Tensor, "count places d"]]:
    """Unit directions of each family at each place; NaN where a place has none.

    SAE directions point the way of their latent, random ones like them have their mean too, and those matched to them
    lie along x with the same sign; the sign of all others is a coin's. Principal directions are drawn from the LEADING
    first; differences of means are between two documents, each pair drawn anew. Nothing is learned from documents with
    places but what is on at a place and the Jacobian there.

    Raises:
        UserError: see `latent_directions.dictionary`.
    """
    rng, shape = np.random.default_rng([seed, 97]), (count, len(g.x))
    given = dictionary(g)
    found = dict[str, Tensor]()
    jacobian = sensitive_directions(g.rest, g.x, count=count, seed=seed).directions.transpose(0, 1)
    found[TOP], found[NEXT] = jacobian[:1], jacobian[1:]
    for name, mask in ((ON, given.on), (OFF, ~given.on)):
        which, held = among(mask, count, rng)
        found[name] = given.rows[which].masked_fill(~held[:, None], torch.nan)
    principal = torch.linalg.eigh(g.covariance).eigenvectors.flip(1)[:, :LEADING].mT.to(g.x)
    found[PCA] = principal[torch.from_numpy(rng.random((shape[1], len(principal))).argsort(1)[:, :count].T.copy())]
    found[MEANS] = _differences(g, shape, rng)
    found[LIKE] = Gaussian.like(given.rows).units(shape, rng)
    found[DATA] = Gaussian.of(g.covariance).units(shape, rng)
    found[ANY] = isotropic(shape, g.x.shape[1], rng)
    coins = {name: torch.from_numpy(rng.integers(2, size=units.shape[:2]) * 2.0 - 1) for name, units in found.items()}
    matched = as_far_along(g.x.to(found[LIKE]), found[ON].to(found[LIKE]), found[LIKE])
    signed = {
        name: units if name in (ON, OFF, LIKE) else coins[name][:, :, None] * units for name, units in found.items()
    }
    return {name: units.to(g.x) for name, units in {**signed, MATCHED: matched}.items()}


def isotropic(shape: tuple[int, int], d: int, rng: np.random.Generator) -> Float[Tensor, "count places d"]:
    """Uniform on the sphere."""
    return unit_rows(torch.from_numpy(rng.standard_normal((*shape, d))))


def _differences(g: Ground, shape: tuple[int, int], rng: np.random.Generator) -> Float[Tensor, "count places d"]:
    counts = np.bincount(g.learned)
    long = np.sort(np.argsort(counts, kind="stable")[-max(2, int((counts >= LONG).sum())) :])
    sums = torch.zeros(len(counts), g.learn.shape[1]).double()
    sums.index_add_(0, torch.from_numpy(g.learned), g.learn.double())
    averages = (sums / torch.from_numpy(counts.clip(min=1))[:, None])[long]
    first = torch.from_numpy(rng.integers(len(long), size=shape))
    second = (first + torch.from_numpy(rng.integers(1, len(long), size=shape))) % len(long)
    return unit_rows(averages[second] - averages[first])
