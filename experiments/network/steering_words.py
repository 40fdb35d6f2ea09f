"""What N2 steers in a language model: words with attributes, probes at one hook, expected effects on the next token.

A word stands where its last token is, the first place at which a causal model has read it whole. Each sentence is read
alone, after the beginning token where there is one. A word that lacks a feature has it not: Number=Plur is 0 for verbs
in the infinitive. Words at the end of a sentence are left out: no token follows them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from experiments.network.steering_families import families
from toolkit.alignment import token_labels
from toolkit.downstream import LanguageDownstream
from toolkit.errors import require, unknown
from toolkit.interventions import record, run
from toolkit.labelled import Labelled, read_labelled
from toolkit.language import LanguageModel, load_model
from toolkit.splits import split_documents
from toolkit.steering_effects import steering_effects
from toolkit.steering_results import SteeringEffects

_AT_ONCE = 16
"""Sentences run together."""
_SHARES = (0.6, 0.2, 0.2)


@dataclass(frozen=True, eq=False)
class WordGround:
    """What directions are tried on."""

    downstream: LanguageDownstream
    """From the hook to the next token's log-probabilities, at the places that are steered."""
    directions: dict[str, Float[np.ndarray, "d m"]]
    """Families, from documents of their own."""
    effects: Float[np.ndarray, "m vocabulary"]
    """Change of the mean log-probabilities with each attribute, the others held: least squares on other documents."""
    next_tokens: Int[Tensor, " places"]
    """What came next."""
    documents: Int[np.ndarray, " places"]
    """Document of each place."""
    attributes: tuple[str, ...]
    """Names."""


@dataclass(frozen=True, eq=False)
class _Words:
    tokens: Int[Tensor, "sentences positions"]
    places: Int[Tensor, "words 2"]
    labels: Float[np.ndarray, "words m"]
    documents: Int[np.ndarray, " words"]

    def some(self, chosen: np.ndarray) -> "_Words":
        """Some of the words and the sentences they stand in."""
        kept, row = self.places[chosen, 0].unique(return_inverse=True)
        places = torch.stack([row, self.places[chosen, 1]], 1)
        tokens = self.tokens[kept][:, : int(places[:, 1].max()) + 2]
        return _Words(tokens, places, self.labels[chosen], self.documents[chosen])


@lru_cache(maxsize=1)
def word_ground(settings: Any, seed: int) -> WordGround:
    """Read words, fit every family, estimate what each attribute does to the next token.

    Raises:
        UserError: what reading the model and the corpus refuses, an attribute that the corpus has not.
    """
    model = load_model(settings.model)
    blocks = int(model.bridge.cfg.n_layers)
    block = max(0, blocks // 2 - 1) if settings.block < 0 else settings.block
    hook = f"blocks.{block}.hook_resid_post"
    words = _read(model, read_labelled(settings.corpus), settings, seed)
    fitted, effects, steered = (words.some(part) for part in split_documents(words.documents, _SHARES, seed=seed))
    few = np.random.default_rng([seed, 8]).permutation(len(steered.labels))[: settings.places]
    steered = steered.some(np.sort(few))
    X = _activations(model, hook, fitted).numpy()
    given = families(X, fitted.labels, groups=fitted.documents, l2=None, seed=seed)
    rest = LanguageDownstream(model, hook, steered.tokens, steered.places)
    came = steered.tokens[steered.places[:, 0], steered.places[:, 1] + 1]
    return WordGround(rest, given, _effects(model, effects), came, steered.documents, settings.attributes)


def next_word_effects(
    ground: WordGround, directions: dict[str, np.ndarray], *, nats: float, random: int, seed: int
) -> SteeringEffects:
    """What some of the directions do there."""
    how: Any = {"kl": nats, "random": random, "seed": seed, "attributes": ground.attributes}
    rest = ground.downstream
    return steering_effects(rest, rest.activations, directions, ground.effects, next_tokens=ground.next_tokens, **how)


def _read(model: LanguageModel, labelled: Labelled, settings: Any, seed: int) -> _Words:
    """Words of random documents, until there are enough, and their sentences as tokens."""
    found = token_labels(labelled, model.tokenizer, "upos", piece="last")
    starts = [model.tokenizer.bos_token_id] if model.tokenizer.bos_token_id is not None else []
    order = np.random.default_rng([seed, 9]).permutation(len(labelled.document_names))
    counts = np.bincount(found.documents, minlength=len(order))[order]
    chosen = np.isin(found.documents, order[: int(np.searchsorted(counts.cumsum(), settings.words)) + 1])
    texts, row = np.unique(found.texts[chosen], return_inverse=True)
    ids = [starts + model.tokenizer(labelled.texts[t], add_special_tokens=False).input_ids for t in texts]
    ids = [each[: model.context] for each in ids]
    tokens = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)
    for i, each in enumerate(ids):
        tokens[i, : len(each)] = torch.tensor(each)
    position = found.positions[chosen] + len(starts)
    inside = position + 1 < np.array([len(each) for each in ids])[row]
    places = torch.as_tensor(np.stack([row, position], 1)[inside])
    labels = np.stack([_has(labelled, name) for name in settings.attributes], 1)[found.words[chosen][inside]]
    rare = int(labels.sum(0).argmin())
    require(bool(labels[:, rare].any()), f"{settings.corpus}: no word has {settings.attributes[rare]}: give more words")
    return _Words(tokens, places, labels, found.documents[chosen][inside])


def _has(labelled: Labelled, attribute: str) -> Float[np.ndarray, " words"]:
    """1 for words that have an attribute layer=label."""
    name, _, label = attribute.partition("=")
    if name not in labelled.word_layers:
        raise unknown("layer", name, labelled.word_layers)
    layer = labelled.word_layers[name]
    if label not in layer.values:
        raise unknown(f"label of {name}", label, layer.values)
    return (layer.codes == layer.values.index(label)).astype(np.float64)


def _activations(model: LanguageModel, hook: str, words: _Words) -> Float[Tensor, "words d"]:
    """The hook's rows at the words."""
    found = torch.empty(len(words.places), model.d_model)
    for here, row, position, tokens in _batches(words):
        found[here] = record(model, tokens, [hook])[hook][row, position].cpu()
    return found


def _batches(words: _Words) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Words, their sentences and positions within a batch, and its tokens: sentences of like length together."""
    lengths = torch.zeros(len(words.tokens), dtype=torch.long)
    lengths.scatter_reduce_(0, words.places[:, 0], words.places[:, 1] + 1, "amax")
    for some in lengths.argsort().split(_AT_ONCE):
        at = torch.full((len(lengths),), -1)
        at[some] = torch.arange(len(some))
        here = (at[words.places[:, 0]] >= 0).nonzero()[:, 0]
        yield here, at[words.places[here, 0]], words.places[here, 1], words.tokens[some, : int(lengths[some].max())]


@torch.no_grad()
def _effects(model: LanguageModel, words: _Words) -> Float[np.ndarray, "m vocabulary"]:
    """Slopes of the clean log-probabilities by all attributes at once."""
    design = torch.as_tensor(np.column_stack([np.ones(len(words.labels)), words.labels])).float()
    product = torch.zeros(design.shape[1], model.vocabulary)
    for here, row, position, tokens in _batches(words):
        product += design[here].mT @ run(model, tokens)[row, position].log_softmax(1).cpu()
    return torch.linalg.solve(design.mT @ design, product)[1:].numpy()
