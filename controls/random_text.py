"""Random text of a reading's shape: tokens by their frequencies, by what follows what, or shuffled."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from controls.reading import Reading


@dataclass(frozen=True)
class RandomText:
    """Sequences, and rows in them that stand for those of a reading."""

    tokens: Int[Tensor, "sequences positions"]
    """Ids."""
    rows: Int[Tensor, "rows 2"]
    """Sequence and position of each row."""
    groups: Int[np.ndarray, " rows"]
    """Document of each row, as the reading numbers them."""
    bearers: Int[np.ndarray, " rows"]
    """The reading's row whose labels each row gets: one of the same token type."""


Draw = Callable[[Reading, np.random.Generator], RandomText]
"""What draws a random text."""


def unigram(reading: Reading, rng: np.random.Generator) -> RandomText:
    """Each token drawn from the reading's own tokens, one by one."""
    tokens, drawn = reading.tokens.numpy().copy(), live(reading)
    tokens[drawn] = rng.choice(tokens[drawn], int(drawn.sum()))
    return _labelled(reading, tokens, drawn, rng)


def bigram(reading: Reading, rng: np.random.Generator) -> RandomText:
    """Each token drawn from those that follow the one before it in the reading.

    The first follows the beginning token, or where there is none is drawn from the reading's first tokens; after a
    token that nothing follows comes any.
    """
    given, drawn = reading.tokens.numpy(), live(reading)
    before, after = given[:, :-1][drawn[:, 1:]], given[:, 1:][drawn[:, 1:]]
    order = np.argsort(before, kind="stable")
    before, after = before[order], after[order]
    tokens = given.copy()
    if drawn[:, 0].any():
        tokens[:, 0] = rng.choice(given[:, 0], len(given))
    for position in range(1, given.shape[1]):
        here = np.flatnonzero(drawn[:, position])
        start, stop = (np.searchsorted(before, tokens[here, position - 1], side=side) for side in ("left", "right"))
        start, stop = np.where(start < stop, start, 0), np.where(start < stop, stop, len(after))
        tokens[here, position] = after[rng.integers(start, stop)]
    return _labelled(reading, tokens, drawn, rng)


def shuffled(reading: Reading, rng: np.random.Generator) -> RandomText:
    """Tokens change places within their document and take their labels along; in labelled texts within each text."""
    tokens, drawn = reading.tokens.numpy().copy(), live(reading)
    flat = np.flatnonzero(drawn)
    texts = reading.unit == "texts"
    home = flat // tokens.shape[1] if texts else _documents(reading)[flat // tokens.shape[1]]
    to, source = flat[np.argsort(home, kind="stable")], flat[np.lexsort((rng.random(len(flat)), home))]
    moved = np.arange(tokens.size)
    moved[source] = to
    changed = tokens.ravel().copy()
    changed[to] = tokens.ravel()[source]
    at = reading.rows[:, 0].numpy() * tokens.shape[1] + reading.rows[:, 1].numpy()
    rows = at if texts else moved[at]
    places = torch.from_numpy(np.stack(np.divmod(rows, tokens.shape[1]), 1))
    return RandomText(
        torch.from_numpy(changed.reshape(tokens.shape)), places, reading.groups, np.arange(len(reading.rows))
    )


def live(reading: Reading) -> Bool[np.ndarray, "sequences positions"]:
    """Tokens that rows depend on, of each sequence those up to its last row; not the beginning token."""
    tokens, rows = reading.tokens.numpy(), reading.rows.numpy()
    last = np.full(len(tokens), -1)
    np.maximum.at(last, rows[:, 0], rows[:, 1])
    first = int((tokens[:, 0] == tokens[0, 0]).all())
    position = np.arange(tokens.shape[1])
    return np.asarray((position >= first) & (position <= last[:, None]))


def _documents(reading: Reading) -> Int[np.ndarray, " sequences"]:
    """Document of each sequence that has rows."""
    found = np.zeros(len(reading.tokens), int)
    found[reading.rows[:, 0].numpy()] = reading.groups
    return found


def _labelled(
    reading: Reading, tokens: Int[np.ndarray, "s p"], drawn: Bool[np.ndarray, "s p"], rng: np.random.Generator
) -> RandomText:
    """Rows where token types have labels, in each document as many as the reading has (or all there are).

    A row gets the labels of a random row of its type: what the type tells stays, what the context tells goes.
    """
    if reading.unit == "texts":
        return RandomText(torch.from_numpy(tokens), reading.rows, reading.groups, np.arange(len(reading.rows)))
    order = np.argsort(reading.ids, kind="stable")
    types = reading.ids[order]
    at = np.argwhere(drawn & np.isin(tokens, types))
    documents = _documents(reading)[at[:, 0]]
    dealt = np.lexsort((rng.random(len(at)), documents))
    firsts = np.searchsorted(documents[dealt], documents[dealt])
    kept = np.sort(dealt[np.arange(len(at)) - firsts < np.bincount(reading.groups)[documents[dealt]]])
    at, groups = at[kept], documents[kept]
    chosen = tokens[at[:, 0], at[:, 1]]
    start, stop = (np.searchsorted(types, chosen, side=side) for side in ("left", "right"))
    return RandomText(torch.from_numpy(tokens), torch.from_numpy(at), groups, order[rng.integers(start, stop)])
