"""Text as a model reads it, and the tokens that are rows: labelled words, ends of labelled texts, or every token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from toolkit.alignment import align
from toolkit.corpora import documents
from toolkit.errors import UserError, require, unknown
from toolkit.labelled import Labelled, Layer, read_labelled
from toolkit.language import LanguageModel

CONTEXT = 64
"""Tokens of a window at most: what interventions cost grows with it."""


@dataclass(frozen=True)
class Reading:
    """Windows of tokens, and where the rows are."""

    tokens: Int[Tensor, "sequences positions"]
    """Ids, the tokenizer's beginning token first where it has one; padded on the right."""
    rows: Int[Tensor, "rows 2"]
    """Sequence and position of each row."""
    groups: Int[np.ndarray, " rows"]
    """Document of each row, numbered from 0 without gaps."""
    items: Int[np.ndarray, " rows"]
    """Word or text of each row, as `labelled` numbers them; empty where rows are tokens."""
    unit: str
    """What a row is: words (a labelled word's last token), texts (a labelled text's last token) or tokens (any)."""
    labelled: Labelled | None
    """Where labels come from."""

    @property
    def ids(self) -> Int[np.ndarray, " rows"]:
        """Token type of each row."""
        found: np.ndarray = self.tokens[self.rows[:, 0], self.rows[:, 1]].numpy()
        return found

    def labels(self, feature: str) -> Int[np.ndarray, " rows"]:
        """0 or 1 for each row, of "LAYER=VALUE".

        Raises:
            UserError: an unknown layer or value, or labels of texts where rows are words.
        """
        require(self.labelled is not None, f"label {feature!r}: this text has no labels")
        assert self.labelled is not None
        unit, layer, code = parsed(feature, self.labelled)
        require(unit == self.unit, f"label {feature!r} is of {unit}, and rows are {self.unit}: audit them apart")
        return (layer.codes[self.items] == code).astype(int)

    def part(self, chosen: Int[np.ndarray, " some"]) -> "Reading":
        """Some of the rows, with the sequences they stand in."""
        sequences, place = torch.unique(self.rows[torch.from_numpy(chosen), 0], return_inverse=True)
        positions = self.rows[torch.from_numpy(chosen), 1]
        items = self.items[chosen] if len(self.items) else self.items
        groups = np.unique(self.groups[chosen], return_inverse=True)[1]
        return replace(
            self,
            tokens=self.tokens[sequences],
            rows=torch.stack([place, positions], 1),
            groups=groups,
            items=items,
        )


def parsed(feature: str, labelled: Labelled) -> tuple[str, Layer, int]:
    """Unit, layer and code of "LAYER=VALUE"; a scheme before it ("ud:", "nltk:") says where labels come from.

    Raises:
        UserError: no such layer or value.
    """
    layer, equals, value = feature.partition("=")
    layer = layer.rpartition(":")[2] if layer.split(":")[0] in SCHEMES else layer
    require(bool(equals), f"label {feature!r}: expected LAYER=VALUE, such as upos=VERB")
    layers = {**labelled.text_layers, **labelled.word_layers}
    if layer not in layers:
        raise unknown("layer of labels", layer, layers)
    if value not in layers[layer].values:
        raise unknown(f"value of {layer}", value, layers[layer].values)
    unit = "words" if layer in labelled.word_layers else "texts"
    return unit, layers[layer], layers[layer].values.index(value)


SCHEMES = ("ud", "nltk")
"""What may stand before a label to say where labels come from."""


def read(
    model: LanguageModel,
    source: str,
    features: Sequence[str],
    *,
    rows: int,
    per_document: int = 1000,
    context: int = CONTEXT,
    seed: int,
) -> Reading:
    """Whole documents in a random order until there are `rows` rows; of a long one the first `per_document`.

    Args:
        source: text, as `toolkit.corpora.documents` takes it, or as `toolkit.labelled.read_labelled` does where there
            are features.
        features: labels asked for, "LAYER=VALUE"; they decide what a row is. Without any, each token is one.

    Raises:
        UserError: a source that is not there, an unknown layer or value, labels of words and of texts at once, no
            tokenizer.
    """
    require(model.tokenizer is not None, f"{model.name} has no tokenizer: text cannot be turned into its tokens")
    require(rows > 0, f"rows must be positive, got {rows}")
    labelled = read_labelled(source) if features else None
    units = {parsed(feature, labelled)[0] for feature in features} if labelled else {"tokens"}
    require(
        len(units) == 1, f"labels of words and of texts have different rows: audit them apart ({', '.join(features)})"
    )
    unit = units.pop()
    context = min(context, model.context)
    found = _Growing(model, context, unit)
    for number, document in enumerate(_documents(source, labelled, seed)):
        before = len(found.places)
        for text, item in document:
            found.add(text, item, labelled, number)
            if len(found.places) - before >= per_document:
                found.places, found.items = found.places[: before + per_document], found.items[: before + per_document]
                found.groups = found.groups[: before + per_document]
                break
        if len(found.places) >= rows:
            break
    return found.done(labelled)


def _documents(source: str, labelled: Labelled | None, seed: int) -> Iterator[list[tuple[str, int]]]:
    """Texts of a document with their numbers, documents in a random order."""
    rng = np.random.default_rng([seed, 103])
    if labelled is None:
        texts = [document.text for document in documents(source)]
        for number in rng.permutation(len(texts)):
            yield [(texts[number], -1)]
        return
    home = np.argsort(labelled.documents, kind="stable")
    starts = np.searchsorted(labelled.documents[home], np.arange(len(labelled.document_names) + 1))
    for number in rng.permutation(len(labelled.document_names)):
        yield [(labelled.texts[i], int(i)) for i in home[starts[number] : starts[number + 1]]]


class _Growing:
    """A reading on its way."""

    def __init__(self, model: LanguageModel, context: int, unit: str) -> None:
        self.tokenizer, self.context, self.unit = model.tokenizer, context, unit
        begin = model.tokenizer.bos_token_id
        self.begin = [] if begin is None else [int(begin)]
        self.lines, self.places = list[list[int]](), list[tuple[int, int]]()
        self.items, self.groups = list[int](), list[int]()

    def add(self, text: str, item: int, labelled: Labelled | None, document: int) -> None:
        """Windows of a text, and its rows."""
        if self.unit == "words":
            assert labelled is not None
            words = np.arange(*labelled.starts[item : item + 2])
            found = align(text, labelled.spans[words], self.tokenizer, special_tokens=False)
            ids, items = found.ids.tolist(), found.labels(words).tolist()
        else:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            items = [item if self.unit == "tokens" else -1] * len(ids)
        room = self.context - len(self.begin)
        if self.unit == "texts":  # a text is read to its end, or to that of the first window
            ids, items = ids[:room], items[:room]
            items[-1:] = [item] * len(items[-1:])
        for start in range(0, len(ids), room):
            self._window(ids[start : start + room], items[start : start + room], document)

    def _window(self, ids: list[int], items: list[int], document: int) -> None:
        for position, item in enumerate(items):
            if item >= 0 or self.unit == "tokens":
                self.places.append((len(self.lines), position + len(self.begin)))
                self.items.append(item)
                self.groups.append(document)
        self.lines.append([*self.begin, *ids])

    def done(self, labelled: Labelled | None) -> Reading:
        """All of it."""
        if not self.places:
            raise UserError("the text has no rows: it holds no token with a label")
        tokens = torch.zeros(len(self.lines), max(len(line) for line in self.lines), dtype=torch.long)
        for number, line in enumerate(self.lines):
            tokens[number, : len(line)] = torch.tensor(line)
        items = np.array(self.items if self.unit != "tokens" else [], dtype=int)
        groups = np.unique(np.array(self.groups), return_inverse=True)[1]
        return Reading(tokens, torch.tensor(self.places), groups, items, self.unit, labelled)
