"""What a control is given: a hook of a network, text as it reads it, and features that a finder named."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls.decoding import FOLDS, Folded, deal, folded
from controls.finders import Finder
from controls.reading import Reading
from controls.subject import FEWEST_DOCUMENTS, Subject, halves
from toolkit.errors import UserError
from toolkit.forward import forward_to
from toolkit.language import LanguageModel

AT_ONCE = 32
"""Sequences read together."""


@dataclass(frozen=True)
class Case:
    """One hook, its features and how much may be spent on them."""

    model: LanguageModel
    """The network."""
    hook: str
    """Where."""
    reading: Reading
    """Text as tokens, and the tokens that are rows."""
    subject: Subject
    """Activations, labels, documents, token types, the rest of the network."""
    finders: Mapping[str, Finder]
    """By family; `subject.families` says which one a feature is of."""
    seed: int = 0
    """Every draw follows from it."""
    draws: int = 199
    """Of what is cheap: permutations, directions."""
    dear: int = 9
    """Of what is not: networks drawn anew, dictionaries trained."""
    rows: int = 4000
    """Rows on which other networks and other text are read."""

    @cached_property
    def some(self) -> Int[np.ndarray, " some"]:
        """Rows of documents in a random order, `rows` of them: of each the first ones, so that many have a part."""
        groups = self.subject.groups
        each = max(1, self.rows // FEWEST_DOCUMENTS)
        sizes = np.bincount(groups)
        home = np.argsort(groups, kind="stable")
        starts = sizes.cumsum() - sizes
        order = np.random.default_rng([self.seed, 107]).permutation(len(sizes))
        ends = np.minimum(sizes[order], each).cumsum()
        kept = order[: int(np.searchsorted(ends, self.rows)) + 1]
        return np.sort(np.concatenate([home[starts[g] : starts[g] + min(sizes[g], each)] for g in kept]))

    @cached_property
    def data(self) -> Folded:
        """All activations dealt to folds, ready for any labels."""
        return folded(self.subject.activations, deal(halves(self.subject.groups, FOLDS, seed=self.seed)))

    @cached_property
    def data_of_some(self) -> Folded:
        """Those of the rows `some`."""
        return self.fold(self.subject.activations[torch.from_numpy(self.some)])

    def fold(self, activations: Float[Tensor, "some d"]) -> Folded:
        """Activations of the rows `some` from another network or other text, dealt to the same folds."""
        groups = np.unique(self.subject.groups[self.some], return_inverse=True)[1]
        return folded(activations, deal(halves(groups, FOLDS, seed=self.seed)))

    def through(
        self, network: LanguageModel, tokens: Int[Tensor, "sequences positions"] | None = None
    ) -> Float[Tensor, "some d"]:
        """The rows `some` as another network has them, or as a network has them in other text of the same shape."""
        at = self.reading.rows[torch.from_numpy(self.some)]
        sequences, place = torch.unique(at[:, 0], return_inverse=True)
        given = (self.reading.tokens if tokens is None else tokens)[sequences]
        return activations_at(network, self.hook, given, torch.stack([place, at[:, 1]], 1))

    def features(self, *, unsupervised: bool = False) -> list[str]:
        """Names of the features, or of those that a finder found without labels.

        Raises:
            UserError: there is none.
        """
        if not unsupervised:
            return list(self.subject.names)
        found = [f for f in self.subject.names if not self.finders[self.subject.families[f]].supervised]
        if not found:
            raise UserError("this control asks what a finder without labels would have found: give --sae or --pca")
        return found


@torch.no_grad()
def activations_at(
    network: LanguageModel, hook: str, tokens: Int[Tensor, "sequences positions"], rows: Int[Tensor, "rows 2"]
) -> Float[Tensor, "rows d"]:
    """What a hook holds at some places, sequences of like lengths side by side."""
    forward = forward_to(network, [hook])
    last = torch.zeros(len(tokens), dtype=torch.long).scatter_reduce(0, rows[:, 0], rows[:, 1] + 1, "amax")
    found: Tensor | None = None
    order = last.argsort(stable=True)
    for some in order.split(AT_ONCE):
        length = max(1, int(last[some].max()))
        values = forward(tokens[some, :length])[hook].cpu()  # (sequences, positions, d)
        if found is None:
            found = torch.empty(len(rows), values.shape[-1])
        place = torch.full((len(tokens),), -1)
        place[some] = torch.arange(len(some))
        here = (place[rows[:, 0]] >= 0).nonzero()[:, 0]
        found[here] = values[place[rows[here, 0]], rows[here, 1]].float()
    assert found is not None
    return found
