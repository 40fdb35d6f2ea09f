"""Rows in documents for planted worlds: rates that differ from document to document, values that stay for a while.

Rows inside a document depend on each other, so a test that takes them for independent rejects too often.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from toolkit.errors import check_types, require


@dataclass(frozen=True)
class Documents:
    """How rows hang together."""

    shortest: int = 20
    """Rows of the shortest document; lengths are uniform between the two."""
    longest: int = 60
    """Rows of the longest document."""
    persistence: float = 0.5
    """Chance that a variable keeps the value it has one row before: its autocorrelation at lag 1, inside a document,
    about the document's own rate."""
    concentration: float = 10.0
    """a + b of the Beta law of a label's rate over documents: documents account for 1 / (a + b + 1) of its variance."""

    def __post_init__(self) -> None:
        check_types(self)
        require(
            1 <= self.shortest <= self.longest and 0 <= self.persistence < 1 and self.concentration > 0,
            f"Documents: expected 1 <= shortest <= longest, 0 <= persistence < 1, concentration > 0, got {self}",
        )


def document_ids(n: int, *, documents: Documents, generator: np.random.Generator) -> Int[np.ndarray, " n"]:
    """The document of each of n rows, numbered from 0; the last one may be cut short.

    Raises:
        UserError: fewer than one row.
    """
    require(n >= 1, f"a world needs at least one row, got n={n}")
    lengths = generator.integers(documents.shortest, documents.longest + 1, size=n // documents.shortest + 1)
    return np.repeat(np.arange(len(lengths)), lengths)[:n]


def sticky_labels(
    groups: Int[np.ndarray, " n"],
    rates: Float[np.ndarray, " features"],
    *,
    documents: Documents,
    generator: np.random.Generator,
) -> Bool[np.ndarray, "n features"]:
    """Independent features, each on with chance `rates` in every row, clustered in documents and in runs."""
    shape = (int(groups[-1]) + 1, len(rates))
    local = generator.beta(rates * documents.concentration, (1 - rates) * documents.concentration, size=shape)
    drawn = generator.random((len(groups), len(rates)), dtype=np.float32) < local[groups]
    return _kept(drawn, groups, documents, generator)


def sticky_normals(
    groups: Int[np.ndarray, " n"], features: int, *, documents: Documents, generator: np.random.Generator
) -> Float[np.ndarray, "n features"]:
    """Independent standard normal variables with the same clustering in documents and runs."""
    share = 1 / (documents.concentration + 1)
    means = generator.standard_normal((int(groups[-1]) + 1, features), dtype=np.float32)
    drawn = generator.standard_normal((len(groups), features), dtype=np.float32)
    return _kept(
        np.float32(share**0.5) * means[groups] + np.float32((1 - share) ** 0.5) * drawn, groups, documents, generator
    )


def first_rows(groups: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
    """Whether a row is its document's first."""
    return np.diff(groups, prepend=-1) != 0


def _kept(
    drawn: np.ndarray, groups: Int[np.ndarray, " n"], documents: Documents, generator: np.random.Generator
) -> np.ndarray:
    """Each value kept from the row before with chance `persistence`, never across documents."""
    fresh = generator.random(drawn.shape, dtype=np.float32) >= documents.persistence
    fresh |= first_rows(groups)[:, None]
    last_fresh = np.where(fresh, np.arange(len(groups), dtype=np.int32)[:, None], 0)
    np.maximum.accumulate(last_fresh, axis=0, out=last_fresh)
    return np.take_along_axis(drawn, last_fresh, axis=0)
