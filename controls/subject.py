"""What is judged: activations with labels, the rest of the network, and the same inputs through null networks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls.worlds import NULL_KINDS, WorldSample
from toolkit.downstream import Downstream
from toolkit.errors import require


@dataclass(frozen=True)
class Subject:
    """Everything the three axes need, from a language model or a planted world."""

    activations: Float[Tensor, "rows d"]
    """What the hook holds, a row a token."""
    labels: Mapping[str, Int[np.ndarray, " rows"]]
    """Each feature's labels, 0 or 1."""
    groups: Int[np.ndarray, " rows"]
    """The document of each row, the unit that is resampled."""
    tokens: Int[np.ndarray, " rows"] | None
    """The token type of each row; None where there are none, and nothing to memorise."""
    places: Int[np.ndarray, " places"]
    """Rows at which the rest of the network can be run."""
    downstream: Downstream
    """The rest of the network; its places are numbered as in `places`."""
    targets: Mapping[str, int | None]
    """The output each feature is said to move; None takes the movement that goes with the label in the data."""
    nulls: Mapping[str, Callable[[int], Float[Tensor, "rows d"]]]
    """For each kind of null network, seed -> the same inputs through weights drawn anew, at `null_rows`."""
    null_rows: Int[np.ndarray, " some"] | None = None
    """Rows that null networks are read at; None for all."""
    families: Mapping[str, str] = field(default_factory=dict)
    """Who named each feature, where there are several finders: labels of one are held fixed for those of the same."""
    weigh: Callable[[Float[Tensor, "rows outputs"]], Float[Tensor, " outputs"]] | None = None
    """From clean outputs to the weight of each in distances; None for 1 / standard deviation."""

    def __post_init__(self) -> None:
        rows = len(self.activations)
        for name, y in self.labels.items():
            require(
                len(np.unique(y)) == 2,
                f"label {name!r} is {'always' if y.any() else 'never'} on in {rows} rows: nothing can be told of it",
            )
        documents = len(np.unique(self.groups))
        require(
            documents >= FEWEST_DOCUMENTS,
            f"{documents} documents are too few for intervals by document: at least {FEWEST_DOCUMENTS} are needed",
        )

    @property
    def names(self) -> Sequence[str]:
        """The features."""
        return list(self.labels)

    def fellows(self, feature: int) -> list[int]:
        """The other features that the same finder named."""
        own = self.families.get(self.names[feature])
        return [f for f, name in enumerate(self.names) if f != feature and self.families.get(name) == own]

    @property
    def table(self) -> Int[np.ndarray, "rows features"]:
        """All labels, a column a feature."""
        return np.stack([self.labels[name] for name in self.labels], 1)


FEWEST_DOCUMENTS = 20
"""A third of them each for two estimates of a direction, and a third to try both."""
MOST_UNITS = 300
"""Units of resampling: more tell standard errors no better."""


def subject_of(sample: WorldSample) -> Subject:
    """A world's sample as a subject, without its truth.

    Raises:
        UserError: a label that never or always occurs, too few documents.
    """

    def null(kind: str) -> Callable[[int], Tensor]:
        def draw(seed: int) -> Tensor:
            drawn = sample.null_sample(kind, seed)
            require(drawn is not None, f"null_sample({kind!r}, {seed}) is None, and was not for seed 0")
            assert drawn is not None
            return drawn

        return draw

    def outputs(activations: Tensor, at: Tensor) -> Tensor:
        return sample.outputs(activations)

    kinds = [kind for kind in NULL_KINDS if sample.null_sample(kind, 0) is not None]
    return Subject(
        activations=sample.activations,
        labels=sample.labels,
        groups=np.unique(sample.groups, return_inverse=True)[1],
        tokens=sample.tokens,
        places=np.arange(len(sample.activations)),
        downstream=outputs,
        targets=sample.targets,
        nulls={kind: null(kind) for kind in kinds},
    )


def halves(groups: Int[np.ndarray, " rows"], count: int, *, seed: int) -> Int[np.ndarray, " rows"]:
    """A part for each row: documents whole, as many rows in each part as documents allow, blind to labels."""
    sizes = np.bincount(groups)
    order = np.random.default_rng([seed, 51]).permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    part, held = np.zeros(len(sizes), int), np.zeros(count)
    for document in order:
        part[document] = int(held.argmin())
        held[part[document]] += sizes[document]
    return part[groups]


def units(groups: Int[np.ndarray, " rows"], *, seed: int) -> Int[np.ndarray, " rows"]:
    """What is drawn with replacement, for each row: its document, or with very many its bin of documents."""
    documents = int(groups.max()) + 1
    if documents <= MOST_UNITS:
        return groups
    return np.random.default_rng([seed, 57]).permutation(documents)[groups] % MOST_UNITS


def as_float(y: np.ndarray) -> Float[Tensor, "rows columns"]:
    """Labels, or what is left of them, as single-precision numbers."""
    return torch.from_numpy(np.ascontiguousarray(y)).float()
