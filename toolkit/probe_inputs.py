"""What probes accept: rows, labels, weights, documents, each refused in one line where it makes no sense."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d

from toolkit.coding_inputs import as_numbers, as_rows
from toolkit.errors import UserError, require


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
    """A torch tensor's numbers as a numpy array, half precision as float32; anything else as it is."""
    if not hasattr(value, "detach"):
        return value
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() and value.itemsize < 4 else value).numpy()


def check_text(X: Any) -> None:
    """Refuse rows of text."""
    values = np.asarray(X) if isinstance(X, (list, tuple, np.ndarray)) else np.empty(0)
    text = values.dtype.kind in "US" or (values.dtype.kind == "O" and any(isinstance(v, str) for v in values.flat))
    require(not text, "X holds text: expected real numbers, one row of activations for each label")


def check_share(value: Any, name: str) -> None:
    """Refuse what is no number between 0 and 1."""
    number = isinstance(value, (int, float, np.number)) and bool(0 < value < 1)
    require(number, f"{name}={value!r}: expected a share between 0 and 1, such as .95")


def probe_rows(X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> ProbeRows:
    """Check rows and what belongs to each.

    Raises:
        UserError: NaN, rows so large or so alike that squares leave their type's range, a label missing, labels that
            are not classes or not one a row, one class only, rows that are all the same, weights that are negative, not
            finite or all zero, a document missing for some row.
    """
    X = as_rows(X, "X")
    y = _labels(y, len(X))
    weights = np.ones(len(X)) if sample_weight is None else as_numbers(sample_weight, "sample_weight")
    _one_a_row(weights, "sample_weight", len(X))
    require(
        bool(np.isfinite(weights).all()) and bool((weights >= 0).all()) and weights.sum() > 0,
        "sample_weight must be finite, not negative and not all zero",
    )
    kept = weights > 0
    classes, labels = np.unique(y[kept], return_inverse=True)
    require(
        len(classes) > 1,
        f"y holds one class only ({classes.tolist()[0]!r}): a classifier needs examples of at least two classes",
    )
    require(len(X) == 1 or bool((X[0] != X).any()), "X: every row is the same, so all its columns are constant")
    _in_range(X)
    numbers = _documents(groups, X)
    return ProbeRows(X[kept], labels, classes, weights[kept], numbers[kept], groups is not None)


def _in_range(X: Float[np.ndarray, "rows d"]) -> None:
    """Refuse rows whose variances would over- or underflow."""
    limits, largest = np.finfo(X.dtype), max(float(X.max()), -float(X.min()))
    low, high = float(limits.tiny / limits.eps) ** 0.5, float(limits.max / X.size) ** 0.5
    widest = float((X.max(0) - X.min(0)).max()) if largest < high else largest
    require(
        largest < high and (len(X) == 1 or widest > low),
        f"X holds values up to {largest:.3g} that differ by up to {widest:.3g}, whose squares leave the range of "
        f"{X.dtype}: scale X",
    )


def _labels(y: Any, rows: int) -> Shaped[np.ndarray, " rows"]:
    require(y is not None, "y should be a 1d array of labels, one for each row of X: got None")
    y = as_array(y)
    require(np.asarray(y).ndim > 0, f"y should be a 1d array of labels, one for each row of X: got {type(y).__name__}")
    missing_refused(np.asarray(y), "y", "label")
    try:
        check_classification_targets(y)
        y = column_or_1d(y, warn=True)
        np.unique(y)  # labels of types that cannot be sorted
    except (ValueError, TypeError) as error:
        raise UserError(f"y: {' '.join(str(error).split())}") from error
    _one_a_row(y, "y", rows)
    return y


def _one_a_row(values: np.ndarray, name: str, rows: int) -> None:
    require(values.shape == (rows,), f"{name} has shape {values.shape}: expected ({rows},), one for each row of X")


def _documents(groups: Any, X: Float[np.ndarray, "rows d"]) -> Int[np.ndarray, " rows"]:
    if groups is None:
        return np.unique(X, axis=0, return_inverse=True)[1].reshape(-1)
    return numbered(groups, "groups", "document", len(X))


def numbered(values: Any, name: str, what: str, rows: int) -> Int[np.ndarray, " rows"]:
    """A number from 0 for each different value, sorted; `name` is the argument, `what` one of its values.

    Raises:
        UserError: not one a row, one missing (None or NaN), values that cannot be sorted.
    """
    values = np.asarray(as_array(values))
    _one_a_row(values, name, rows)
    missing_refused(values, name, what)
    try:
        return np.unique(values, return_inverse=True)[1]
    except TypeError as error:
        raise UserError(f"{name} mixes types that cannot be sorted ({error}): give numbers or text") from error


def missing_refused(values: np.ndarray, name: str, what: str) -> None:
    """Refuse None and NaN, which differs from itself.

    Raises:
        UserError: those.
    """
    missing = values != values
    if values.dtype.kind == "O":
        missing = missing | (values == None)  # noqa: E711
    rows = np.flatnonzero(missing)
    require(not len(rows), f"{name} lacks a {what} for row {rows[:1].sum()}: expected one for each row")


def folds(data: ProbeRows, count: int, *, seed: int) -> Int[np.ndarray, " rows"]:
    """A fold for each row: documents whole, dealt at random, classes spread as evenly as documents allow.

    Raises:
        UserError: fewer documents, or members of a class, than folds; a fold that would hold no row, or whose removal
            would leave a class without members.
    """
    check_members(data, count)
    table = np.zeros((int(data.groups.max()) + 1, len(data.classes) + 1))  # rows by class, and all of them
    np.add.at(table, (data.groups, data.labels), 1.0)
    table[:, -1] = np.bincount(data.groups)
    found = _dealt(data, table, count, seed)
    for fold in range(count):
        kept = np.bincount(data.labels[found != fold], minlength=len(data.classes))
        require(
            bool((kept > 0).all()),
            f"{_source(data)}: all of class {data.classes.tolist()[int(kept.argmin())]!r} lies in one "
            f"of {count} folds; lower folds, or give l2",
        )
    return found


def check_members(data: ProbeRows, count: int, *, name: str = "folds") -> None:
    """Refuse a class with fewer members than folds, which the argument `name` asked for.

    Raises:
        UserError: such a class.
    """
    distinct = data.labels if data.grouped else np.unique(np.stack([data.groups, data.labels]), axis=1)[1]
    sizes = np.bincount(distinct)
    least = int(sizes.argmin())
    require(
        sizes[least] >= count,
        f"y: class {data.classes.tolist()[least]!r} has {sizes[least]} members, fewer than {name}={count}: "
        + _way_out(name),
    )


def _way_out(name: str) -> str:
    return f"lower {name}, or give l2" if name == "folds" else f"lower {name}, or give more rows"


def blind_folds(data: ProbeRows, count: int, *, seed: int, name: str = "folds") -> Int[np.ndarray, " rows"]:
    """`folds` that do not look at labels: the same whatever they are, as a permutation test needs them.

    Folds that balance the labels as observed would not balance permuted ones, and would favour the former.

    `name` is the argument that asked for them.

    Raises:
        UserError: a count that is no whole number of at least 2, fewer documents than folds.
    """
    check_count(count, name, least=2)
    check_count(seed, "seed", least=0)
    return _dealt(data, np.bincount(data.groups)[:, None].astype(float), count, seed, name)


def check_count(value: Any, name: str, *, least: int) -> None:
    """Refuse what is no whole number of at least `least`."""
    whole = bool(isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= least)
    require(whole, f"{name}={value!r}: expected a whole number of at least {least}")


def _source(data: ProbeRows) -> str:
    return "groups" if data.grouped else "X"


def _dealt(
    data: ProbeRows, table: Float[np.ndarray, "documents columns"], count: int, seed: int, name: str = "folds"
) -> Int[np.ndarray, " rows"]:
    """Each document to the fold that keeps the folds' shares of every column most even, the largest first."""
    present = np.unique(data.groups)
    what = "documents" if data.grouped else "different rows"
    require(
        len(present) >= count,
        f"{_source(data)} holds {len(present)} {what}, fewer than {name}={count}: {_way_out(name)}",
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
            f"{_source(data)}: fold {fold} of {count} is left empty; {_way_out(name)}",
        )
    return found
