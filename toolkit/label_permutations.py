"""Labels dealt anew: what stays the same of them says what a null leaves out (Ernst 2004, on permutation schemes)."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from toolkit.errors import require, unknown
from toolkit.probe_inputs import as_array, check_count, missing_refused, numbered

Draw = Callable[[np.random.Generator], Int[np.ndarray, " rows"]]
"""A generator -> the row whose label each row gets."""


def permuted_rows(
    y: Any, *, scheme: str, groups: Any = None, tokens: Any = None, n: int, seed: int
) -> Int[np.ndarray, "rows n"]:
    """For each of n permutations, the row whose label each row gets; `y[permuted_rows(...)]` are the labels.

    Labels are dealt out again once each, so the base rate stays what it is, but for "types" and for "documents" where
    each document has one label: compare scores with each column's own base rate there, as `permutation_null` does.

    Args:
        y: (rows,) labels, of which "documents" asks whether each document has one only.
        scheme: "iid": any row's label; "documents": where each document has one label, documents exchange theirs, and
            lengths that differ change the base rate; else all labels one document after another, in another order of
            documents, which is exact where documents are of one length, or neither labels nor rows depend on the place
            in the document: with other lengths places go out of step, so that a label of the place is found in rows
            that tell the place ("tokens", given places, exchanges labels of the same place only); "tokens": the label
            of a row with the same token; "shift": labels turned round inside each document, which keeps their runs;
            "types": each token's commonest label to all rows of another token, which changes the base rate: exact
            where the label is a function of the token alone and tokens got theirs at random.
        groups: (rows,) documents, for "documents" and "shift".
        tokens: (rows,) token ids, for "tokens" and "types".

    Raises:
        UserError: an unknown scheme, its argument missing, also for some row, or of another length, a label missing,
            nothing that could change place, an n or a seed out of range.
    """
    if scheme not in tuple(_SCHEMES):
        raise unknown("scheme", str(scheme), _SCHEMES)
    check_count(n, "n", least=1)
    check_count(seed, "seed", least=0)
    y = np.asarray(as_array(y))
    require(y.ndim == 1 and len(y) > 0, f"y has shape {y.shape}: expected (rows,), one label a row")
    missing_refused(y, "y", "label")
    name, make = _SCHEMES[scheme]
    given = {"groups": groups, "tokens": tokens}.get(name)
    require(not name or given is not None, f"scheme={scheme!r} needs {name}: one for each row")
    units = np.zeros(len(y), int) if given is None else numbered(given, name, name.removesuffix("s"), len(y))
    sizes = np.bincount(units)
    one = {"documents": "document", "types": "token"}.get(scheme)
    require(
        len(sizes) > 1 if one else sizes.max() > 1,
        f"scheme={scheme!r}: no label could change place, as "
        + (f"there is one {one}" if one else f"every one of {name or 'the rows'} stands alone"),
    )
    draw = make(y, units)
    rng = np.random.default_rng([seed, 41])
    return np.stack([draw(rng) for _ in range(n)], 1)


def _iid(y: Shaped[np.ndarray, " rows"], units: Int[np.ndarray, " rows"]) -> Draw:
    return lambda rng: rng.permutation(len(y))


def _tokens(y: Shaped[np.ndarray, " rows"], units: Int[np.ndarray, " rows"]) -> Draw:
    home = np.argsort(units, kind="stable")

    def draw(rng: np.random.Generator) -> Int[np.ndarray, " rows"]:
        source = np.empty(len(y), int)
        source[home] = np.lexsort((rng.random(len(y)), units))
        return source

    return draw


def _types(y: Shaped[np.ndarray, " rows"], units: Int[np.ndarray, " rows"]) -> Draw:
    labels = np.unique(y, return_inverse=True)[1]
    often = np.zeros((int(units.max()) + 1, int(labels.max()) + 1), int)
    np.add.at(often, (units, labels), 1)
    of = np.unique(labels, return_index=True)[1][often.argmax(1)]  # for each token, a row with its commonest label
    return lambda rng: of[rng.permutation(len(of))][units]


def _documents(y: Shaped[np.ndarray, " rows"], units: Int[np.ndarray, " rows"]) -> Draw:
    home = np.argsort(units, kind="stable")
    parts = np.split(home, np.bincount(units).cumsum()[:-1])
    if all((y[part] == y[part[0]]).all() for part in parts):
        firsts = np.array([part[0] for part in parts])
        return lambda rng: firsts[rng.permutation(len(parts))][units]

    def draw(rng: np.random.Generator) -> Int[np.ndarray, " rows"]:
        source = np.empty(len(y), int)
        source[home] = np.concatenate([parts[at] for at in rng.permutation(len(parts))])
        return source

    return draw


def _shift(y: Shaped[np.ndarray, " rows"], units: Int[np.ndarray, " rows"]) -> Draw:
    home = np.argsort(units, kind="stable")
    sizes = np.bincount(units)
    first = np.repeat(sizes.cumsum() - sizes, sizes)
    within, length = np.arange(len(y)) - first, np.repeat(sizes, sizes)

    def draw(rng: np.random.Generator) -> Int[np.ndarray, " rows"]:
        turned = (within + np.repeat(rng.integers(sizes), sizes)) % length
        source = np.empty(len(y), int)
        source[home] = home[first + turned]
        return source

    return draw


_SCHEMES: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], Draw]]] = {
    "iid": ("", _iid),
    "documents": ("groups", _documents),
    "tokens": ("tokens", _tokens),
    "shift": ("groups", _shift),
    "types": ("tokens", _types),
}
