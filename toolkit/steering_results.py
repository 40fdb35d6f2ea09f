"""The effects of steering, vector by vector, and a table of them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

_HEADS = ("length", "moved", "target", "off target", "leakage", "loss", "p target", "p share")


@dataclass(frozen=True, eq=False)
class SteeringEffects:
    """What `steering_effects` measured. NaN where a vector is zero or cannot move the outputs that far."""

    families: tuple[str, ...]
    """Names of the directions' families, in the order given."""
    attributes: tuple[str, ...]
    """Names of the attributes, in the order of the effects."""
    wanted: float
    """Mean divergence that every vector was scaled to."""
    scales: Float[np.ndarray, "families m"]
    """Length of the vector that is added or subtracted."""
    divergence: Float[np.ndarray, "families m places"]
    """KL(steered || clean) in nats, or half the squared distance."""
    explained: Float[np.ndarray, "families m places"]
    """The part of it that movement along the attribute's expected effect explains."""
    along: Float[np.ndarray, "families m m places"]
    """Steered towards the first attribute, movement along the effect of the second, as `Movements.along` has it."""
    loss: Float[np.ndarray, "families m places"] | None
    """Rise of -log p(next token), nats; None where no next tokens were given."""
    random_target: Float[np.ndarray, "families m n"]
    """`target` of random directions of the same length at the same places."""
    random_explained: Float[np.ndarray, "families m n"]
    """Their `share`."""

    @property
    def target(self) -> Float[np.ndarray, "families m"]:
        """Target effect: mean movement along the attribute's own expected effect, in units of its length."""
        return np.einsum("fjjp->fjp", self.along).mean(2)

    @property
    def off_target(self) -> Float[np.ndarray, "families m"]:
        """Mean divergence that movement along the expected effect does not explain."""
        return (self.divergence - self.explained).mean(2)

    @property
    def share(self) -> Float[np.ndarray, "families m"]:
        """Part of the mean divergence that is on target; 1 less this is off target."""
        return self.explained.mean(2) / self.divergence.mean(2)

    @property
    def leakage(self) -> Float[np.ndarray, "families m m"]:
        """Mean movement along the other attributes' effects; the diagonal is `target`."""
        return self.along.mean(3)

    @property
    def p(self) -> Float[np.ndarray, "families m"]:
        """(1 + number of random directions with at least this target effect) / (1 + n); NaN without random ones."""
        return _p_values(self.random_target, self.target)

    @property
    def p_share(self) -> Float[np.ndarray, "families m"]:
        """The same for `share`."""
        return _p_values(self.random_explained, self.share)

    def __str__(self) -> str:
        return table(self)


def _p_values(null: np.ndarray, observed: np.ndarray) -> np.ndarray:
    reached = np.isfinite(observed) & (null.shape[2] > 0)
    return np.where(reached, (1 + (null >= observed[..., None]).sum(2)) / (1 + null.shape[2]), np.nan)


def table(found: SteeringEffects) -> str:
    """A line for each family and attribute, the family side by side for each attribute.

    moved: mean divergence; target: along the expected effect, in units of it; off target: share of the divergence
    beside it; leakage: the largest movement along another attribute's effect; loss: its rise.
    """
    width = max(len(f"{a}, {f}") for a in found.attributes for f in found.families) + 2
    lines = [" " * width + "".join(f"{head:>11}" for head in _HEADS)]
    for j, attribute in enumerate(found.attributes):
        for f, family in enumerate(found.families):
            others = np.abs(np.delete(found.leakage[f, j], j))
            loss = np.nan if found.loss is None else found.loss[f, j].mean()
            values = [found.scales[f, j], found.divergence[f, j].mean(), found.target[f, j], 1 - found.share[f, j],
                      others.max(initial=-np.inf), loss, found.p[f, j], found.p_share[f, j]]  # fmt: skip
            lines.append(f"{f'{attribute}, {family}':{width}}" + "".join(f"{_number(v):>11}" for v in values))
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "-"
