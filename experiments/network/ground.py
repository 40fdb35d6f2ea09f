"""What experiments on directions stand on: a network at a hook, rows to learn from, an SAE, and places to move them at.

Rows that anything is learned from (covariances, SAEs) and places that are moved stand in different documents. The first
position of a sequence is left out: what a network keeps there is of another size than all the rest.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from controls.case import activations_at
from controls.reading import CONTEXT, Reading, read
from experiments.network import subjects
from experiments.network.networks import TRAINED, network
from experiments.network.subject import Subject
from toolkit.downstream import LanguageDownstream
from toolkit.errors import require
from toolkit.language import LanguageModel
from toolkit.model_files import DEFAULT
from toolkit.sae import SAE, LoadedSAE

BLOCK = 512
"""Rows that go through the rest of the network at a time: each has a vocabulary of outputs."""
CACHED = 32
"""Rows whose divergences are taken together: their outputs stay near the processor."""
MOVED = 0.4
"""Of the documents, those with places that are moved; the others are learned from."""
FEWEST = 8
"""Documents on each side: intervals are over documents."""
ASIDE = 5
"""One of so many documents to learn from is kept from SAEs: what their errors are like is learned there."""
PER_DOCUMENT, MANY = 400, 30
"""Rows read of one document at most, and documents read where there are as many."""


@dataclass(frozen=True, eq=False)
class Ground:
    """A network at one hook."""

    model: LanguageModel
    """The network asked."""
    hook: str
    """Where."""
    text: Reading
    """The rows to learn from, where they stand and what labels they have."""
    learn: Float[Tensor, "rows d"]
    """Activations of other documents than those of the places."""
    learned: Int[np.ndarray, " rows"]
    """Their documents."""
    rest: LanguageDownstream
    """From the hook to the next token's log-probabilities, at the places."""
    documents: Int[np.ndarray, " places"]
    """Document of each place."""
    settings: Subject
    """Where it comes from."""
    seed: int
    """Of its draws."""

    @property
    def x(self) -> Float[Tensor, "places d"]:
        """Activations at the places."""
        return self.rest.activations

    @property
    def positions(self) -> Int[np.ndarray, " places"]:
        """Where in its sequence each place stands, from 0."""
        return self.rest.places[:, 1].numpy()

    @cached_property
    def clean(self) -> Float[Tensor, "places vocabulary"]:
        """Log-probabilities of the next token with nothing moved."""
        return self.outputs(self.x, torch.arange(len(self.x)))

    @cached_property
    def mean(self) -> Float[Tensor, " d"]:
        """Of the rows to learn from."""
        return self.learn.mean(0)

    @cached_property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Of the rows to learn from."""
        return torch.cov(self.learn.mT.double())

    @cached_property
    def sae(self) -> SAE | LoadedSAE:
        """The SAE at the hook: the one named, or one trained on the rows to learn from.

        Raises:
            UserError: it cannot be read, reads rows of another width, or was trained on another hook.
        """
        return subjects.sae_at(self.settings, self.model, self.hook, self.learn[~self.aside], seed=self.seed)

    @cached_property
    def aside(self) -> Bool[Tensor, " rows"]:
        """Which rows to learn from no SAE that is trained here sees: those of every fifth document."""
        number = np.unique(self.learned, return_inverse=True)[1]
        return torch.from_numpy((number % ASIDE == 0) & (not self.settings.sae))

    @property
    def unseen(self) -> Float[Tensor, "some d"]:
        """Rows to learn from that the SAE was not trained on."""
        return self.learn if self.settings.sae else self.learn[self.aside]

    def latents(self, rows: Float[Tensor, "rows d"]) -> Float[Tensor, "rows width"]:
        """Of the SAE."""
        return self.sae.encode(rows[None])[0].detach()

    def rebuilt(self, rows: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        """By the SAE."""
        return self.sae(rows[None])[0].detach()

    @torch.no_grad()
    def outputs(self, rows: Float[Tensor, "rows d"], at: Int[Tensor, " rows"]) -> Float[Tensor, "rows vocabulary"]:
        """Log-probabilities of the next token where row i stands in for the activation of place at[i]."""
        parts = zip(rows.split(BLOCK), at.split(BLOCK), strict=True)
        return torch.cat([self.rest(some, places).cpu() for some, places in parts])

    @torch.no_grad()
    def divergence(self, rows: Float[Tensor, "rows d"], at: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """KL(clean || moved) of the next token in nats, where row i stands in for the activation of place at[i].

        What the network says at the moved position alone; the keys and values that later positions read are as they
        were. Below about 1e-7 it is rounding.
        """
        found = torch.empty(len(at), dtype=torch.float64)
        order = self.rest.places[at.cpu(), 1].argsort(stable=True)  # those with as much before them side by side
        for some in order.split(BLOCK):
            parts = zip(some.split(CACHED), self.rest(rows[some], at[some]).cpu().split(CACHED), strict=True)
            found[some] = torch.cat([divergence(self.clean[at[few]], moved) for few, moved in parts])
        return found

    def divergences(self, rows: Float[Tensor, "ways places d"]) -> Float[Tensor, "ways places"]:
        """The same for many ways of moving every place."""
        at = torch.arange(rows.shape[1]).repeat(len(rows))
        return self.divergence(rows.flatten(0, 1), at).view(rows.shape[:2])  # (ways * places, d) -> (ways, places)


def divergence(clean: Float[Tensor, "rows outputs"], moved: Float[Tensor, "rows outputs"]) -> Float[Tensor, " rows"]:
    """KL(clean || moved) of log-probabilities, in nats, never below 0."""
    return (clean.exp() * (clean - moved)).sum(1, dtype=torch.float64).clamp(min=0)


@lru_cache(maxsize=1)
def ground(settings: Subject, at: str, *, kind: str = TRAINED, seed: int = 0) -> Ground:
    """Read text and run the network up to a hook.

    Args:
        settings: what the experiment is about.
        at: one of `settings.at`.
        kind: which network, as `experiments.network.networks.network` has it; the text is the same for all.

    Raises:
        UserError: a model, hook or text that is not there or too short, a position that no sequence has.
    """
    model = network(settings.model or DEFAULT, kind, seed=seed, processing=processing(settings))
    hook = hook_of(settings, model, at)
    model.check_hook(hook)
    if settings.sae:
        subjects.check_hook(settings.sae, hook)
    text = _reading(settings.model, processing(settings), settings.corpus, settings.read_with, settings.rows, seed)
    learned, moved = _dealt(text, settings, seed)
    part, sequences = text.part(learned), text.part(moved)
    rows = activations_at(model, hook, part.tokens, part.rows)  # refuses hooks without a row for each token
    one = f"{hook} holds one number a token, which has no directions"
    require(rows.shape[1] > 1, f"{one}: choose another, such as its block's hook_resid_post")
    rest = LanguageDownstream(model, hook, sequences.tokens, sequences.rows)
    return Ground(model, hook, part, rows, part.groups, rest, sequences.groups, settings, seed)


def processing(settings: Subject) -> tuple[str, ...]:
    """What is done to weights: as named, else what the model of the SAE that is named was loaded with."""
    return settings.processing or (subjects.processing(settings.sae) if settings.sae else ())


def hook_of(settings: Subject, model: LanguageModel, at: str) -> str:
    """The hook that a cell means.

    Raises:
        UserError: fewer blocks than are asked for.
    """
    if at.isdigit():
        before = max(1, int(model.bridge.cfg.n_layers) - 1)
        named = f"layers={settings.layers}, and {model.name} has {before} blocks before its last"
        require(settings.layers <= before, f"{named}: --set layers={before}, or name --hook")
        blocks = np.linspace(0, max(0, int(model.bridge.cfg.n_layers) - 2), settings.layers).round().astype(int)
        block = int(blocks[int(at)]) if settings.layers > 1 else max(0, int(model.bridge.cfg.n_layers) // 2 - 1)
        return f"blocks.{block}.hook_resid_post"
    return at


@lru_cache(maxsize=1)
def _reading(
    model: str, processing: tuple[str, ...], corpus: str, labels: tuple[str, ...], rows: int, seed: int
) -> Reading:
    """Text as the trained network reads it; every token is a row, or every one that labels are of."""
    trained = network(model or DEFAULT, processing=processing)
    if not corpus:
        return subjects.said(trained, rows=rows, context=CONTEXT, seed=seed)
    per_document = min(PER_DOCUMENT, max(1, rows // MANY))
    return read(trained, corpus, labels, rows=rows, per_document=per_document, seed=seed)


def _dealt(text: Reading, settings: Subject, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn from, and places of other documents, taken from one document after another by turns."""
    rng = np.random.default_rng([seed, 61])
    positions, documents = text.rows[:, 1].numpy(), int(text.groups.max()) + 1
    named = f"the text has {documents} documents"
    require(documents >= 2 * FEWEST, f"{named}, and {2 * FEWEST} are needed, to learn from and to move: give more")
    held = np.isin(text.groups, rng.permutation(documents)[: max(FEWEST, round(MOVED * documents))])
    is_there = positions == settings.position if settings.position else positions > 0
    require(
        bool(is_there.any()),
        f"no sequence has position {settings.position}: the longest has {text.tokens.shape[1]} tokens, counted from 0",
    )
    able = rng.permutation(np.flatnonzero(held & is_there))
    turn = _turns(text.groups[able])
    chosen = np.sort(able[np.lexsort((np.arange(len(able)), turn))][: settings.places])
    moved = len(np.unique(text.groups[chosen]))
    what = f"position={settings.position or 'any'}, places={settings.places}"
    require(
        moved >= FEWEST,
        f"places of {moved} documents would be moved ({what}), and {FEWEST} documents are needed: more text or places",
    )
    return np.flatnonzero(~held & (positions > 0)), chosen


def _turns(groups: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    """For each row how many of its group stand before it."""
    order = np.argsort(groups, kind="stable")
    first = np.searchsorted(groups[order], groups[order])
    turns = np.empty(len(groups), int)
    turns[order] = np.arange(len(groups)) - first
    return turns
