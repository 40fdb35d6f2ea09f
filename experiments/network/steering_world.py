"""A network that reads what is written along known directions, so that it is known which direction moves what alone.

Rows are x = A z + B u + noise: correlated binary attributes z with labels, and other features u without. Directions
overlap within groups of two attributes and some others, where attributes are no closer in meaning than elsewhere. The
network reads M = [A B]^+ x, each feature free of every other, and its output j hangs on reading j alone.

What theory says of the candidates for attribute j, in the population (C covariance of z, N that of B u + noise, G =
(A^T N^-1 A)^-1): rows of least squares are W = C (C + G)^-1 G A^T N^-1, and so are those of logistic regression up to
a matrix on the left, by Stein's lemma. So W and its plain dual lie in the span of N^-1 A, and M takes them out of A's
wherever B overlaps with A: they move the others' outputs. The dual weighted with the rows' covariance is A (W A)^-1,
for least squares A (I + G C^-1): it moves no other's output, and attributes' as far as noise makes a probe lean on
correlated ones. Patterns of all labels together are A, the truth. A difference of means is A C_j / C_jj: it errs by the
correlation of the attributes, and by nothing else. With B = 0 both duals are one.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import norm
from torch import Tensor

ATTRIBUTES, DIMENSIONS, OTHERS = 6, 32, 6
"""With labels; of the rows; without labels."""
_RATE, _PAIR = 0.3, 2
_KINKS = ((-0.5, 1.0), (0.25, -0.5), (1.0, -0.25))
"""Threshold and outgoing weight of the ReLUs on each reading: steep below, flatter above, never level."""


@dataclass(frozen=True, eq=False)
class SteeringWorld:
    """Rows, labels, and a network that reads them."""

    rows: Float[Tensor, "rows d"]
    """Activations, float64; each a document of its own."""
    labels: Float[np.ndarray, "rows m"]
    """0 or 1."""
    written: Float[np.ndarray, "d m"]
    """A, unit columns: what attribute j adds."""
    reads: Float[np.ndarray, "outputs d"]
    """M: readings of the attributes, then of the others."""
    relu: bool
    """Whether ReLUs stand between readings and outputs."""

    def __call__(self, activations: Float[Tensor, "rows d"], at: Tensor) -> Float[Tensor, "rows outputs"]:
        """The network's outputs; places do not matter to it."""
        readings = activations @ torch.as_tensor(self.reads).mT
        if not self.relu:
            return readings
        return torch.stack([weight * (readings - kink).relu() for kink, weight in _KINKS]).sum(0)

    @property
    def effects(self) -> Float[np.ndarray, "m outputs"]:
        """Mean change of the outputs when one attribute alone is switched on."""
        rows, at = self.rows, torch.arange(len(self.rows))
        z, a = torch.as_tensor(self.labels), torch.as_tensor(self.written)
        each = [
            self(rows + (1 - z[:, j, None]) * a[:, j], at) - self(rows - z[:, j, None] * a[:, j], at)
            for j in range(a.shape[1])
        ]
        return torch.stack([change.mean(0) for change in each]).numpy()


def steering_world(
    *, rows: int, relu: bool, correlation: float, overlap: float, others: int, noise: float, seed: int
) -> SteeringWorld:
    """Draw directions and rows.

    Args:
        correlation: of the Gaussians whose upper 30% are the attributes.
        overlap: cosine between directions of a group: two attributes and every third of the others.
        others: features without labels, standard normal.
        noise: standard deviation in every dimension.
    """
    draw = np.random.default_rng([seed, 6])
    groups = ATTRIBUTES // _PAIR
    group = np.concatenate([np.arange(ATTRIBUTES) // _PAIR, np.arange(others) % groups])
    basis = np.linalg.qr(draw.standard_normal((DIMENSIONS, groups + len(group))))[0]
    directions = np.sqrt(overlap) * basis[:, group] + np.sqrt(1 - overlap) * basis[:, groups:]
    common = np.sqrt(correlation) * draw.standard_normal((rows, 1))
    latent = common + np.sqrt(1 - correlation) * draw.standard_normal((rows, ATTRIBUTES))
    labels = (latent > norm.ppf(1 - _RATE)).astype(np.float64)
    features = np.concatenate([labels, draw.standard_normal((rows, others))], 1)
    x = features @ directions.T + noise * draw.standard_normal((rows, DIMENSIONS))
    return SteeringWorld(torch.as_tensor(x), labels, directions[:, :ATTRIBUTES], np.linalg.pinv(directions), relu)
