"""Sizes of N10, and which of them make a sweep."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from toolkit.errors import check_types, require
from toolkit.superposition_error import Sizes, predicted_error

SMALL = 0.6
"""Slopes are fitted where the predicted error is below this: near 1 it bends."""


def sloped(theory: Float[np.ndarray, " sizes"]) -> Bool[np.ndarray, " sizes"]:
    """Which sizes a slope is fitted over, by their predicted errors: those in superposition, and small."""
    return (theory > 0) & (theory < SMALL)


@dataclass(frozen=True)
class Settings:
    """The sizes swept, each about the first four with k=1, and what is trained."""

    circuits: int = 1024
    """T."""
    large: int = 512
    """D."""
    width: int = 4
    """m."""
    copies: int = 4
    """S; two circuits share (m S)^2 / D = .5 large neurons on average."""
    over_circuits: tuple[int, ...] = (512, 1024, 2048, 4096, 8192, 16384)
    """T, with one circuit called and with `together`."""
    over_stored: tuple[int, ...] = (128, 256, 512, 1024)
    """T where answers are written back into D numbers and read there, likewise."""
    over_large: tuple[int, ...] = (256, 384, 512, 768, 1024)
    """D."""
    over_width: tuple[int, ...] = (2, 3, 4, 6, 8)
    """m."""
    over_k: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 16)
    """k."""
    over_copies: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    """S; the last is D / m: dense codes."""
    together: int = 4
    """k of the second sweep over T and of the second training."""
    rows: int = 4096
    """Rows that an error is measured on."""
    seeds: int = 8
    """Networks of each embedding."""
    trained_circuits: tuple[int, ...] = (8, 16, 32, 64, 128)
    """T of the large networks that are trained."""
    trained_large: int = 64
    """Their D, and that of the embeddings beside them."""
    trained_copies: int = 2
    """S of those."""
    trained_seeds: int = 4
    """Networks trained of each size."""
    steps: int = 3000
    """Of training."""
    shared: bool = False
    """Every circuit has the same code: nothing is left of the effect."""

    def __post_init__(self) -> None:
        check_types(self)
        for name, value in vars(self).items():
            least = min(value, default=0) if isinstance(value, tuple) else value
            require(isinstance(value, bool) or least >= 1, f"{name} must be at least 1, got {value}")
        self._check_extremes()
        for name in ("circuits", "large", "width", "k"):
            sizes = getattr(self, f"over_{name}")
            require(len(set(sizes)) > 1, f"over_{name} needs two sizes for a slope, got {sizes}")
            require(list(sizes) == sorted(set(sizes)), f"over_{name} must rise, got {sizes}")
            base = {"circuits": self.circuits, "large": self.large, "width": self.width, "k": 1}
            theory = [predicted_error(Sizes(copies=self.copies, **{**base, name: size})) for size in sizes]
            few = f"fewer than two sizes of over_{name} are in superposition with a predicted error below {SMALL}"
            require(int(sloped(np.array(theory)).sum()) > 1, f"{few}, where a slope is fitted: {sizes}")
        among = f"copies={self.copies} must be one of over_copies={self.over_copies}"
        require(self.copies in self.over_copies, among)
        apart = self.trained_large // (self.width * self.trained_copies)
        few = f"trained_circuits={self.trained_circuits} lie apart in trained_large={self.trained_large}"
        require(max(self.trained_circuits) > apart, f"{few}: take one above {apart}")

    def _check_extremes(self) -> None:
        stored, together = self.over_stored, self.together
        rises = len(stored) > 1 and list(stored) == sorted(set(stored))
        require(rises, f"over_stored must rise, two sizes at least, got {stored}")
        require(together > 1, f"together must be at least 2, got {together}: one alone is swept anyway")
        least = min(*stored, *self.over_circuits)
        require(together <= least, f"together={together} is more than the fewest circuits swept, {least}")
        most = self.width * max(self.over_copies)
        require(most <= self.large, f"over_copies={self.over_copies}: width times copies must be at most {self.large}")
