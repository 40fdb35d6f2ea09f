"""A hook of a language model and labels of words, as something to be judged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls.model_weights import drawn_anew
from controls.subject import Subject
from toolkit.alignment import align
from toolkit.downstream import LanguageDownstream
from toolkit.errors import require, unknown
from toolkit.forward import forward_to
from toolkit.labelled import Labelled, read_labelled
from toolkit.language import LanguageModel

AT_ONCE = 32
"""Sentences read together."""


@dataclass(frozen=True)
class Sentences:
    """Sentences as a model reads them, and the tokens that carry a word's label: its last ones."""

    tokens: Int[Tensor, "sentences positions"]
    """Ids, the tokenizer's beginning token first where it has one; padded on the right."""
    rows: Int[Tensor, "rows 2"]
    """Sentence and position of each token with a label."""
    labels: dict[str, Int[np.ndarray, " rows"]]
    """0 or 1, for each feature asked for."""
    groups: Int[np.ndarray, " rows"]
    """Documents."""

    @property
    def ids(self) -> Int[np.ndarray, " rows"]:
        """Token type of each row."""
        found: np.ndarray = self.tokens[self.rows[:, 0], self.rows[:, 1]].numpy()
        return found


def language_subject(
    model: LanguageModel,
    hook: str,
    source: str,
    features: Sequence[str],
    *,
    rows: int = 4000,
    per_document: int = 100,
    places: int = 600,
    seed: int = 0,
    kinds: Sequence[str] = ("init", "spectrum"),
) -> Subject:
    """Labels of words at one hook, with the rest of the model and null networks on the same sentences.

    Documents are read in a random order, from each the first sentences, until `rows` tokens carry a label. A word's row
    is its last token.

    Args:
        source: what `toolkit.labelled.read_labelled` takes, with labels of words.
        features: such as "upos=VERB" or "Number=Plur"; "ud:" before one is allowed.
        per_document: tokens with a label after which a document is left: many documents tell more than long ones.
        places: rows at which the rest of the model is run.
        kinds: of null networks, as `controls.model_weights.drawn_anew` has them.

    Raises:
        UserError: an unknown hook, layer or value; a label that never or always occurs; too few documents.
    """
    model.check_hook(hook)
    read = read_sentences(model, read_labelled(source), features, rows, per_document, seed=seed)

    def activations(network: LanguageModel) -> Float[Tensor, "rows d"]:
        forward = forward_to(network, [hook])
        parts = [forward(some)[hook].cpu() for some in read.tokens.split(AT_ONCE)]
        return torch.cat(parts)[read.rows[:, 0], read.rows[:, 1]].clone()

    def null(kind: str) -> Callable[[int], Tensor]:
        return lambda number: activations(drawn_anew(model, kind, seed=number))

    n = len(read.rows)
    at = np.sort(np.random.default_rng([seed, 101]).choice(n, min(places, n), replace=False))
    return Subject(
        activations=activations(model),
        labels=read.labels,
        groups=np.unique(read.groups, return_inverse=True)[1],
        tokens=read.ids,
        places=at,
        downstream=LanguageDownstream(model, hook, read.tokens, read.rows[at]),
        targets=dict.fromkeys(read.labels),
        nulls={kind: null(kind) for kind in kinds},
    )


def read_sentences(
    model: LanguageModel, labelled: Labelled, features: Sequence[str], rows: int, per_document: int, *, seed: int
) -> Sentences:
    """The first sentences of documents in a random order.

    Raises:
        UserError: no tokenizer, an unknown layer or value.
    """
    require(model.tokenizer is not None, f"{model.name} has no tokenizer: words cannot be turned into its tokens")
    parsed = {feature: _parsed(feature, labelled) for feature in features}
    order = np.random.default_rng([seed, 103]).permutation(len(labelled.document_names))
    begin = [model.tokenizer.bos_token_id] if model.tokenizer.bos_token_id is not None else []
    lines, places, words, documents = list[list[int]](), list[tuple[int, int]](), list[int](), list[int]()
    for document in order:
        before = len(places)
        for text in np.flatnonzero(labelled.documents == document):
            start, stop = labelled.starts[text : text + 2]
            spans = labelled.spans[start:stop]
            found = align(labelled.texts[text], spans, model.tokenizer, special_tokens=False)
            carried = found.labels(np.arange(start, stop))[: model.context - len(begin)]
            for position in np.flatnonzero(carried >= 0):
                places.append((len(lines), int(position) + len(begin)))
                words.append(int(carried[position]))
                documents.append(int(document))
            lines.append([*begin, *found.ids.tolist()][: model.context])
            if len(places) - before >= per_document:
                break
        if len(places) >= rows:
            break
    tokens = torch.zeros(len(lines), max(len(line) for line in lines), dtype=torch.long)
    for number, line in enumerate(lines):
        tokens[number, : len(line)] = torch.tensor(line)
    labels = {
        feature: (labelled.word_layers[layer].codes[words] == code).astype(int)
        for feature, (layer, code) in parsed.items()
    }
    return Sentences(tokens, torch.tensor(places), labels, np.array(documents))


def _parsed(feature: str, labelled: Labelled) -> tuple[str, int]:
    """Layer and code of "layer=value"."""
    layer, equals, value = feature.removeprefix("ud:").partition("=")
    require(bool(equals), f"label {feature!r}: expected LAYER=VALUE, such as upos=VERB")
    if layer not in labelled.word_layers:
        raise unknown("layer of words", layer, labelled.word_layers)
    values = labelled.word_layers[layer].values
    if value not in values:
        raise unknown(f"value of {layer}", value, values)
    return layer, values.index(value)
