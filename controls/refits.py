"""Features that a finder named without labels, and how near what it finds in other rows comes to their directions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls.case import Case
from controls.finders import Finder, Latents, refitted
from controls.subject import halves
from toolkit.errors import require

AGAIN = "largest |cosine| of its direction with one found again"
"""What is measured of a feature that a finder named."""
ROUNDING = 4
"""Decimals kept of a cosine: rows in single precision tell no more, and equal finds have to tie."""


@dataclass(frozen=True)
class Sought:
    """A finder, and those of its features that are judged."""

    family: str
    """The finder's."""
    finder: Finder
    """To be run again on other rows."""
    names: tuple[str, ...]
    """Its features in the case."""
    directions: Float[Tensor, "features d"]
    """What it writes or reads along for each."""
    l0: int
    """Of an SAE, the mean number of latents on at once in the case's rows; 0 of other finders."""

    def refit(self, rows: Float[Tensor, "some d"], *, seed: int) -> Float[Tensor, "found d"]:
        """What the same recipe finds in some rows, with this L0: on other rows the SAE's own would be another."""
        if isinstance(self.finder, Latents):
            return refitted(rows, self.finder.width, self.l0, seed=seed).W_dec[0]
        return self.finder.refit(rows, seed=seed)

    def again(self, rows: Float[Tensor, "some d"], *, seed: int) -> Float[np.ndarray, " features"]:
        """The largest |cosine| of each feature's direction with those that the same recipe finds in some rows."""
        return overlaps(self.directions, self.refit(rows, seed=seed))


def sought(case: Case) -> list[Sought]:
    """The features of every finder without labels.

    Raises:
        UserError: there is none.
    """
    features, found = case.features(unsupervised=True), []
    for family in dict.fromkeys(case.subject.families[feature] for feature in features):
        finder = case.finders[family]
        directions = finder.directions()
        require(directions is not None, f"finder {family!r} has no directions: nothing can be found again")
        assert directions is not None
        order = list(finder.labels(case.reading, case.subject.activations[:1]))
        names = tuple(feature for feature in features if case.subject.families[feature] == family)
        places = np.array([order.index(name) for name in names])
        l0 = finder.mean_l0(rows_of(case)) if isinstance(finder, Latents) else 0
        found.append(Sought(family, finder, names, directions[torch.from_numpy(places)], l0))
    return found


def overlaps(
    directions: Float[Tensor, "features d"], found: Float[Tensor, "found d"]
) -> Float[np.ndarray, " features"]:
    """The largest |cosine| of each direction with one of those found, to ROUNDING decimals.

    With n directions drawn uniformly it is about sqrt(2 ln n / d): at d = 128, n = 1024 it measures 0.300.
    """
    unit = torch.nn.functional.normalize
    cosines = unit(directions.float(), dim=1) @ unit(found.detach().float(), dim=1).mT  # (features, found)
    largest: np.ndarray = cosines.abs().amax(1).double().numpy().round(ROUNDING)
    return largest


def generators(case: Case, number: int, draws: int) -> Iterator[tuple[np.random.Generator, int]]:
    """A generator and a seed for each of some draws of the control of that number."""
    for draw in range(draws):
        rng = np.random.default_rng([case.seed, number, draw])
        yield rng, int(rng.integers(2**31))


def rows_of(case: Case) -> Float[Tensor, "some d"]:
    """Activations of the rows `some`."""
    return case.subject.activations[torch.from_numpy(case.some)].float()


def half_of(case: Case) -> Int[np.ndarray, " some"]:
    """0 or 1 for each of the rows `some`: two halves of their documents."""
    groups = np.unique(case.subject.groups[case.some], return_inverse=True)[1]
    return halves(groups, 2, seed=case.seed)
