"""Labels of words carried over to a model's tokens, by the characters both stand on.

A token belongs to the word that most of its characters are in, the first of them in a tie. White space belongs to no
word: a token " cat" is a piece of "cat", a token of spaces only is none of any word. Tokenizers that split a character
into bytes give each of its tokens the whole character; all of them are pieces of its word.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from toolkit.errors import UserError, require, unknown
from toolkit.labelled import Labelled

Piece = Literal["first", "last", "all"]
"""Which of a word's tokens carries its label. The last is where a causal model has read the whole word."""

_BLOCK = 256
"""Texts aligned at a time: few calls, little memory."""


@dataclass(frozen=True)
class Alignment:
    """The tokens of one text and its words."""

    ids: Int[np.ndarray, " tokens"]
    """Token ids, special tokens and padding included."""
    words: Int[np.ndarray, " tokens"]
    """Word of each token; -1 for special tokens, padding, and what is in no word."""
    pieces: Int[np.ndarray, "words 2"]
    """First and last token that has a character of the word, though the token may belong to a neighbour (one token on
    two words); -1, -1 where there is none (cut off, or dropped by the tokenizer)."""

    @property
    def first(self) -> Bool[np.ndarray, " tokens"]:
        """The token belongs to a word and is the first on it."""
        return self._is_end(0)

    @property
    def last(self) -> Bool[np.ndarray, " tokens"]:
        """The token belongs to a word and is the last on it."""
        return self._is_end(1)

    def _is_end(self, end: int) -> np.ndarray:
        index = np.arange(len(self.words))
        known = self.words >= 0
        found = np.zeros(len(self.words), dtype=bool)
        found[known] = self.pieces[self.words[known], end] == index[known]
        return found

    def labels(self, codes: Int[np.ndarray, " words"], *, piece: Piece = "last") -> Int[np.ndarray, " tokens"]:
        """The code of each token's word on the tokens that carry it, -1 on all others.

        Where a token is on two words the one it does not belong to may go without: use `pieces` for a token of every
        word.

        Raises:
            UserError: piece is none of first, last, all; or codes are not one a word.
        """
        carriers = {"first": self.first, "last": self.last, "all": self.words >= 0}
        if piece not in carriers:
            raise unknown("piece", piece, carriers)
        require(len(codes) == len(self.pieces), f"expected {len(self.pieces)} codes, one a word, got {len(codes)}")
        found = np.full(len(self.words), -1)
        found[carriers[piece]] = codes[self.words[carriers[piece]]]
        return found


def align(text: str, spans: Int[np.ndarray, "words 2"], tokenizer: Any, *, special_tokens: bool = True) -> Alignment:
    """Tokenize a text and find the tokens of its words.

    Args:
        text: one text.
        spans: first character of each word and one past its last; in order, apart from or equal to each other.
        tokenizer: of Hugging Face, with offsets ("fast").
        special_tokens: let the tokenizer add its own.

    Raises:
        UserError: the tokenizer gives no offsets; a span is empty, outside the text, or overlaps another in part.
    """
    return _align_block([text], [spans], tokenizer, special_tokens)[0]


def align_offsets(
    ids: Int[np.ndarray, " tokens"],
    offsets: Int[np.ndarray, "tokens 2"],
    spans: Int[np.ndarray, "words 2"],
    *,
    special: Bool[np.ndarray, " tokens"] | None = None,
) -> Alignment:
    """The same for a text tokenized before, padded or cut: offsets are the tokenizer's `offset_mapping`.

    Args:
        ids: token ids.
        offsets: first character of each token and one past its last.
        spans: of the words, as for `align`.
        special: special tokens and padding, where their offsets do not show it by being empty.

    Raises:
        UserError: a span is empty, or overlaps another in part.
    """
    places, place_of_word = np.unique(spans, axis=0, return_inverse=True)
    sound = (places[:, 0] < places[:, 1]).all() and (places[1:, 0] >= places[:-1, 1]).all()
    require(bool(sound), "expected words of at least one character, apart from or equal to each other")
    tokens, hit = _characters(offsets, places, special)
    # Counting the characters of each (token, place): the fullest place is the token's, the first of them in a tie.
    pairs, counts = np.unique(tokens * max(len(places), 1) + hit, return_counts=True)
    holders, held = np.divmod(pairs, max(len(places), 1))
    order = np.lexsort((held, -counts, holders))
    owners, position = np.unique(holders[order], return_index=True)
    first_word = np.unique(place_of_word, return_index=True)[1]
    words = np.full(len(ids), -1)
    words[owners] = first_word[held[order][position]]
    ends = np.full((len(places), 2), -1)
    ends[hit[::-1], 0] = tokens[::-1]  # assigned from the end, the first token of a place is what stays
    ends[hit, 1] = tokens
    return Alignment(np.asarray(ids), words, ends[place_of_word].reshape(-1, 2))  # (words, 2)


def _characters(offsets: np.ndarray, places: np.ndarray, special: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(token, place) of each character that a token has in a place, in order."""
    lengths = offsets[:, 1] - offsets[:, 0]
    lengths = lengths if special is None else np.where(special, 0, lengths)
    tokens = np.repeat(np.arange(len(offsets)), lengths)
    within = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    characters = offsets[tokens, 0] + within
    hit = np.searchsorted(places[:, 0], characters, side="right") - 1
    inside = hit >= 0
    inside[inside] = characters[inside] < places[hit[inside], 1]
    return tokens[inside], hit[inside]


def _align_block(texts: list[str], spans: list[np.ndarray], tokenizer: Any, special_tokens: bool) -> list[Alignment]:
    """Texts aligned together, as if they were one after the other in one long text: a call for each would be slow."""
    name = type(tokenizer).__name__
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{name} gives no character offsets: expected a fast tokenizer (one with a tokenizer.json)")
    inside = all(len(s) == 0 or (s.min() >= 0 and s.max() <= len(t)) for t, s in zip(texts, spans, strict=True))
    require(inside, "a word's span is outside its text: expected characters of the same text")
    options = {"return_offsets_mapping": True, "return_special_tokens_mask": True, "verbose": False}
    read = tokenizer(texts, add_special_tokens=special_tokens, padding=False, truncation=False, **options)
    begin = np.cumsum([0, *map(len, texts)])
    tokens = np.cumsum([0, *map(len, read["input_ids"])])
    words = np.cumsum([0, *map(len, spans)])
    offsets = [np.array(o, dtype=int).reshape(-1, 2) + b for o, b in zip(read["offset_mapping"], begin, strict=False)]
    whole = align_offsets(
        np.array([i for ids in read["input_ids"] for i in ids], dtype=int),
        np.concatenate(offsets),
        np.concatenate([s + b for s, b in zip(spans, begin, strict=False)]),
        special=np.array([m for mask in read["special_tokens_mask"] for m in mask], dtype=bool),
    )
    return [_cut(whole, tokens[i : i + 2], words[i : i + 2]) for i in range(len(texts))]


def _cut(whole: Alignment, tokens: np.ndarray, words: np.ndarray) -> Alignment:
    """One text's part, its tokens and words counted from 0."""
    of_token = whole.words[slice(*tokens)]
    pieces = whole.pieces[slice(*words)]
    return Alignment(
        whole.ids[slice(*tokens)],
        np.where(of_token >= 0, of_token - words[0], -1),
        np.where(pieces >= 0, pieces - tokens[0], -1),
    )


@dataclass(frozen=True)
class TokenLabels:
    """The tokens that carry a label, over all texts of a corpus; rows to train a probe on."""

    texts: Int[np.ndarray, " rows"]
    """Text of each row, an index into `Labelled.texts`."""
    positions: Int[np.ndarray, " rows"]
    """Its token's place in the tokenized text; as in a harvest, if the tokenizer adds no special tokens."""
    ids: Int[np.ndarray, " rows"]
    """Its token's id."""
    words: Int[np.ndarray, " rows"]
    """Its word, an index into `Labelled.words`; -1 for labels of whole texts."""
    codes: Int[np.ndarray, " rows"]
    """Its label, an index into `values`."""
    documents: Int[np.ndarray, " rows"]
    """Its document: rows of one are dependent, so resample and split by it."""
    values: tuple[str, ...]
    """The labels."""


def token_labels(
    labelled: Labelled, tokenizer: Any, layer: str, *, piece: Piece = "last", special_tokens: bool = False
) -> TokenLabels:
    """One layer's labels on a model's tokens; a layer of texts takes each text as if it were one word.

    Args:
        labelled: texts with labels.
        tokenizer: of Hugging Face, with offsets ("fast").
        layer: name of a layer of words or texts.
        piece: which token of a word (or text) carries its label.
        special_tokens: let the tokenizer add its own, which positions then count; a harvest's positions do not.

    Raises:
        UserError: no such layer or piece; the tokenizer gives no offsets.
    """
    by_word = layer in labelled.word_layers
    layers = labelled.word_layers if by_word else labelled.text_layers
    if layer not in layers:
        raise unknown("layer", layer, [*labelled.word_layers, *labelled.text_layers])
    texts = list(labelled.texts)
    starts = labelled.starts if by_word else np.arange(len(texts) + 1)
    spans = labelled.spans if by_word else np.array([(0, len(text)) for text in texts])
    codes = layers[layer].codes
    cuts = [slice(*edges) for edges in pairwise(starts)]
    rows = []
    for start in range(0, len(texts), _BLOCK):
        some = slice(start, start + _BLOCK)
        block = _align_block(texts[some], [spans[cut] for cut in cuts[some]], tokenizer, special_tokens)
        for text, found in enumerate(block, start=start):
            carried = found.labels(codes[cuts[text]], piece=piece)
            at = np.flatnonzero(carried >= 0)
            words = found.words[at] + starts[text] if by_word else np.full(len(at), -1)
            rows.append(np.stack([np.full(len(at), text), at, found.ids[at], words, carried[at]]))
    text_of, positions, ids, words, carried = np.concatenate(rows, axis=1)
    return TokenLabels(text_of, positions, ids, words, carried, labelled.documents[text_of], layers[layer].values)
