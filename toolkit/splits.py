"""Splits by document."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from toolkit.errors import require


def split_documents(
    groups: Int[np.ndarray, " rows"], shares: Sequence[float], *, seed: int
) -> tuple[Int[np.ndarray, " part"], ...]:
    """Rows of each part, in order; no document is in two parts, and none of the parts is empty.

    Documents are shuffled; then each part in turn, the smallest share first, is given documents whose rows come as
    near to its share of all rows as any choice of the documents left can (a subset sum, Bellman 1957). With two parts
    no split by documents comes nearer. What the shares leave over is in the documents' sizes: measure it as
    len(part) / len(groups).

    Args:
        groups: document of each row.
        shares: of the rows, one for each part, above 0, with sum 1.
        seed: of the shuffle.

    Raises:
        UserError: shares are not such, or there are fewer documents than parts.
    """
    wrong = f"expected shares above 0 with sum 1, got {list(shares)}"
    require(len(shares) > 0 and min(shares) > 0 and abs(sum(shares) - 1) < 1e-9, wrong)
    documents, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    require(
        len(documents) >= len(shares),
        f"cannot split {len(documents)} documents into {len(shares)} parts: a document is never divided",
    )
    left = [int(document) for document in np.random.default_rng(seed).permutation(len(documents))]
    part_of = np.empty(len(documents), dtype=int)
    order = np.argsort(shares, kind="stable")
    for waiting, part in zip(range(len(shares) - 1, -1, -1), order, strict=True):
        taken = _nearest(left, sizes, shares[part] * len(groups), waiting) if waiting else left
        part_of[taken] = part
        gone = set(taken)
        left = [document for document in left if document not in gone]
    return tuple(np.flatnonzero(part_of[members] == part) for part in range(len(shares)))


def _nearest(documents: list[int], sizes: np.ndarray, target: float, spared: int) -> list[int]:
    """Documents whose sizes sum to as near the target as can be; at least one, and at least `spared` are left."""
    taken = _subset(documents, sizes, target)
    if len(documents) - len(taken) >= spared:
        return taken
    largest = sorted(documents, key=lambda document: -sizes[document])[:spared]
    return _subset([document for document in documents if document not in largest], sizes, target)


def _subset(documents: list[int], sizes: np.ndarray, target: float) -> list[int]:
    """The subset sum; of the choices the one that ends earliest in the order given."""
    reachable = [1]  # bit s of entry i: some of the first i documents have s rows in all
    best, useful = max(round(target), 1), (2 << int(target + sizes[documents].max())) - 1
    for document in documents:
        reachable.append((reachable[-1] | reachable[-1] << int(sizes[document])) & useful)
        if reachable[-1] >> best & 1:
            break
    total = min(_sums(reachable[-1]), key=lambda rows: (abs(rows - target), rows))
    taken = []
    for position in range(len(reachable) - 2, -1, -1):
        if not reachable[position] >> total & 1:
            taken.append(documents[position])
            total -= int(sizes[documents[position]])
    return taken


def _sums(bits: int) -> list[int]:
    """Places of the bits that are set, but for the lowest."""
    return [place for place, bit in enumerate(reversed(f"{bits:b}")) if bit == "1" and place]
