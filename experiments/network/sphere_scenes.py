"""What spheres stand round: activations of a network, or of a planted one that reads each of its features by itself."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from experiments.network.ground import BLOCK, Ground, divergence
from experiments.network.latent_directions import Dictionary, dictionary
from toolkit.downstream import Downstream
from toolkit.sphere_search import unit_rows

FEATURES, DIMENSIONS, ON = 128, 64, 4
"""Of the planted network, and how many are on at a place."""
THRESHOLD, ROUNDED, GAIN = 0.6, 0.05, 5.0
"""A feature has to be on by so much before it is read, the corner is rounded so far, and then writes a logit."""


@dataclass(frozen=True, eq=False)
class Scene:
    """A network from a hook on, places, and a dictionary that it may read."""

    rest: Downstream
    """To log-probabilities, differentiable."""
    x: Float[Tensor, "places d"]
    """Activations."""
    clean: Float[Tensor, "places outputs"]
    """Log-probabilities with nothing moved."""
    documents: Int[np.ndarray, " places"]
    """Of the places."""
    covariance: Float[Tensor, "d d"]
    """Of activations."""
    dictionary: Dictionary
    """Directions and where they are on."""

    @property
    def typical(self) -> float:
        """Distance of activations from their mean, root mean square."""
        return float(self.covariance.trace().sqrt())

    @torch.no_grad()
    def divergences(self, rows: Float[Tensor, "ways places d"]) -> Float[Tensor, "ways places"]:
        """KL(clean || moved) of many ways of moving every place, in nats."""
        at = torch.arange(rows.shape[1]).repeat(len(rows))
        flat = rows.to(self.x).flatten(0, 1)  # (ways * places, d)
        found = [
            divergence(self.clean[places], self.rest(some, places).to(self.clean))
            for some, places in zip(flat.split(BLOCK), at.split(BLOCK), strict=True)
        ]
        return torch.cat(found).view(rows.shape[:2])  # (ways * places,) -> (ways, places)


def scene_of(ground: Ground) -> Scene:
    """A network at a hook, with its SAE.

    Raises:
        UserError: see `latent_directions.dictionary`.
    """
    given = dictionary(ground)
    return Scene(ground.rest, ground.x, ground.clean, ground.documents, ground.covariance, given)


class Reader:
    """Reads each feature along its own direction, once it is on by THRESHOLD, and writes it to its own output."""

    def __init__(self, directions: Float[Tensor, "features d"]):
        """Of given directions."""
        self._directions = directions

    def __call__(self, activations: Float[Tensor, "rows d"], at: Int[Tensor, " rows"]) -> Float[Tensor, "rows outputs"]:
        """Log-probabilities of one output a feature; a row's place does not matter."""
        excess = (activations @ self._directions.mT - THRESHOLD) / ROUNDED
        return (GAIN * ROUNDED * torch.nn.functional.softplus(excess)).log_softmax(1)


def planted(places: int, seed: int) -> Scene:
    """Activations that are sums of ON of FEATURES directions, and a network that reads these and nothing else."""
    rng = np.random.default_rng([seed, 73])
    rows = unit_rows(torch.from_numpy(rng.standard_normal((FEATURES, DIMENSIONS))))
    sizes = torch.from_numpy(rng.uniform(1, 1.5, (places, FEATURES)))
    on = torch.from_numpy(rng.random((places, FEATURES)).argsort(1).argsort(1) < ON)
    x = (sizes * on) @ rows
    rest = Reader(rows)
    everywhere = torch.arange(places)
    covariance = rows.mT @ torch.cov((sizes * on).mT) @ rows
    return Scene(rest, x, rest(x, everywhere), everywhere.numpy(), covariance, Dictionary(rows, on))
