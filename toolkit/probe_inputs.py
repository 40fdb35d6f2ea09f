"""What probes accept: rows, labels, weights, documents, each refused in one line where it makes no sense."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from toolkit.coding_inputs import as_rows
from toolkit.errors import require


@dataclass(frozen=True)
class ProbeRows:
    """Rows to learn from, those of weight zero left out."""

    X: Float[np.ndarray, "rows d"]
    """Activations, float32 or float64."""
    labels: Int[np.ndarray, " rows"]
    """Place of each row's label among `classes`."""
    classes: Shaped[np.ndarray, " classes"]
    """The labels there are, sorted."""
    weights: Float[np.ndarray, " rows"]
    """Positive weights."""
    groups: Int[np.ndarray, " rows"]
    """Number of each row's document; without documents rows that are equal are one."""
    grouped: bool
    """Whether documents were given."""

    def subset(self, kept: Bool[np.ndarray, " rows"]) -> "ProbeRows":
        """Some of the rows, with the classes of all."""
        return replace(
            self, X=self.X[kept], labels=self.labels[kept], weights=self.weights[kept], groups=self.groups[kept]
        )


def as_array(value: Any) -> Any:
    """A torch tensor's numbers as a numpy array; anything else as it is."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def probe_rows(X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> ProbeRows:
    """Check rows and what belongs to each.

    Raises:
        UserError: NaN, labels that are not classes or not one a row, one class only, weights that are negative, not
            finite or all zero, a document missing for some row.
    """
    X = as_rows(X, "X")
    check_classification_targets(y)
    y = column_or_1d(as_array(y), warn=True)
    _one_a_row(y, "y", len(X))
    weights = np.ones(len(X)) if sample_weight is None else np.asarray(as_array(sample_weight), float)
    _one_a_row(weights, "sample_weight", len(X))
    require(
        bool(np.isfinite(weights).all()) and bool((weights >= 0).all()) and weights.sum() > 0,
        "sample_weight must be finite, not negative and not all zero",
    )
    kept = weights > 0
    classes, labels = np.unique(y[kept], return_inverse=True)
    require(
        len(classes) > 1,
        f"y holds one class only ({classes[0]!r}): a classifier needs examples of at least two classes",
    )
    numbers = _documents(groups, X)
    return ProbeRows(X[kept], labels, classes, weights[kept], numbers[kept], groups is not None)


def _one_a_row(values: np.ndarray, name: str, rows: int) -> None:
    require(values.shape == (rows,), f"{name} has shape {values.shape}: expected ({rows},), one for each row of X")


def _documents(groups: Any, X: Float[np.ndarray, "rows d"]) -> Int[np.ndarray, " rows"]:
    if groups is None:
        return np.unique(X, axis=0, return_inverse=True)[1].reshape(-1)
    groups = np.asarray(as_array(groups))
    _one_a_row(groups, "groups", len(X))
    missing = groups == None if groups.dtype.kind == "O" else groups != groups  # noqa: E711
    require(not missing.any(), f"groups lacks a document for row {int(np.argmax(missing))}: expected one for each row")
    return np.unique(groups, return_inverse=True)[1]


def folds(data: ProbeRows, count: int, *, seed: int) -> Int[np.ndarray, " rows"]:
    """A fold for each row: documents whole, dealt at random, classes spread as evenly as documents allow.

    Raises:
        UserError: fewer documents, or members of a class, than folds; a fold that would hold no row, or whose removal
            would leave a class without members.
    """
    distinct = data.labels if data.grouped else np.unique(np.stack([data.groups, data.labels]), axis=1)[1]
    sizes = np.bincount(distinct)
    least = int(sizes.argmin())
    require(
        sizes[least] >= count,
        f"y: class {data.classes[least]!r} has {sizes[least]} members, fewer than folds={count}: lower it or give l2",
    )
    table = np.zeros((int(data.groups.max()) + 1, len(data.classes) + 1))  # rows by class, and all of them
    np.add.at(table, (data.groups, data.labels), 1.0)
    table[:, -1] = np.bincount(data.groups)
    found = _dealt(data, table, count, seed)
    for fold in range(count):
        kept = np.bincount(data.labels[found != fold], minlength=len(sizes))
        require(
            bool((kept > 0).all()),
            f"{_source(data)}: all of class {data.classes[int(kept.argmin())]!r} lies in one of {count} folds; lower "
            "folds, or give l2",
        )
    return found


def blind_folds(data: ProbeRows, count: int, *, seed: int) -> Int[np.ndarray, " rows"]:
    """`folds` that do not look at labels: the same whatever they are, as a permutation test needs them.

    Folds that balance the labels as observed would not balance permuted ones, and would favour the former.

    Raises:
        UserError: fewer documents than folds, or a fold that would hold no row.
    """
    return _dealt(data, np.bincount(data.groups)[:, None].astype(float), count, seed)


def _source(data: ProbeRows) -> str:
    return "groups" if data.grouped else "X"


def _dealt(
    data: ProbeRows, table: Float[np.ndarray, "documents columns"], count: int, seed: int
) -> Int[np.ndarray, " rows"]:
    """Each document to the fold that keeps the folds' shares of every column most even, the largest first."""
    present = np.unique(data.groups)
    what = "documents" if data.grouped else "different rows"
    require(
        len(present) >= count,
        f"{_source(data)} holds {len(present)} {what}, fewer than folds={count}: lower folds, or give l2",
    )
    table = table / table.sum(0)
    order = np.random.default_rng([seed, 31]).permutation(present)
    order = order[np.argsort(-table[order].max(1), kind="stable")]
    fold_of, held = np.zeros(len(table), int), np.zeros((count, table.shape[1]))
    for document in order:
        after = ((held + table[document]) ** 2 - held**2).sum(1)
        fold_of[document] = int(after.argmin())
        held[fold_of[document]] += table[document]
    found = fold_of[data.groups]
    for fold in range(count):
        require(
            bool((found == fold).any()),
            f"{_source(data)}: fold {fold} of {count} is left empty; lower folds, or give l2",
        )
    return found
