"""Held-out scores of many columns of labels, all fitted at once on the same rows."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from toolkit.heads import log_probabilities
from toolkit.probe_base import GRID, Probe
from toolkit.probe_inputs import ProbeRows, as_array

# Numbers held at a time: half a GB in float64.
_AT_ONCE = 1 << 26
# Numbers held for each logit: themselves, log-probabilities, residuals, and copies of them in passing.
_A_LOGIT = 8
# Numbers held for each parameter: L-BFGS's steps and changes of gradients, and copies of them in passing.
_A_PARAMETER = 50


def label_blocks(
    probe: Probe, data: ProbeRows, labels: Int[np.ndarray, "rows problems"]
) -> Iterator[Int[np.ndarray, "rows part"]]:
    """The columns of labels in parts that memory can hold at once."""
    outputs = 1 if len(data.classes) == 2 else len(data.classes)
    fits = 1 if probe.get_params().get("l2", 0.0) is not None else len(GRID)
    width = max(_A_LOGIT * len(labels) * outputs, _A_PARAMETER * probe.parameters(data.X.shape[1], outputs)) * fits
    yield from np.array_split(labels, min(labels.shape[1], -(-width * labels.shape[1] // _AT_ONCE)), axis=1)


def held_out_scores(
    probe: Probe,
    data: ProbeRows,
    labels: Int[np.ndarray, "rows problems"],
    fold_of: Int[np.ndarray, " rows"],
    *,
    score: str = "accuracy",
) -> Float[np.ndarray, "rows problems"] | Bool[np.ndarray, "rows problems"]:
    """Each row's score by the probe fitted on the other folds: right or wrong, or the label's log-probability in nats.

    A class that none of the rows fitted on has is never guessed, and its rows score -log(classes (1 + rows fitted on)):
    what an escape of one part in 1 + rows to the uniform distribution leaves (`toolkit.code_length`). Labels are
    numbers of `data.classes`.
    """
    found = np.empty(labels.shape, bool if score == "accuracy" else float)
    for fold in range(int(fold_of.max()) + 1):
        away = fold_of == fold
        found[away] = scores(probe, data, labels, fit=~away, score_on=away, score=score)
    return found


def scores(
    probe: Probe,
    data: ProbeRows,
    labels: Int[np.ndarray, "rows problems"],
    *,
    fit: Bool[np.ndarray, " rows"],
    score_on: Bool[np.ndarray, " rows"],
    score: str = "accuracy",
) -> Float[np.ndarray, "part problems"] | Bool[np.ndarray, "part problems"]:
    """Scores of some rows by a probe fitted on others."""
    heads = probe.fit_together(data.subset(fit), probe.to_tensor(labels[fit]))
    with torch.no_grad():
        guesses = log_probabilities(heads.logits(probe.to_tensor(data.X[score_on])))  # (part, problems, classes)
        truth = probe.to_tensor(labels[score_on])
        each = guesses.argmax(2) == truth if score == "accuracy" else guesses.gather(2, truth[..., None])[..., 0]
    if score == "accuracy":
        return as_array(each)
    return escaped(as_array(each.double()), _counts(labels[fit], len(data.classes)), labels[score_on])


def baselines(
    labels: Int[np.ndarray, "rows problems"], fold_of: Int[np.ndarray, " rows"], classes: int, *, score: str
) -> Float[np.ndarray, " problems"]:
    """Mean scores of each column's base rate: the commonest class of the other folds, or its classes' shares there."""
    total, column = np.zeros(labels.shape[1]), np.arange(labels.shape[1])
    for fold in range(int(fold_of.max()) + 1):
        counts, truth = _counts(labels[fold_of != fold], classes), labels[fold_of == fold]
        if score == "accuracy":
            total += (truth == counts.argmax(0)).sum(0)
        else:
            with np.errstate(divide="ignore"):
                total += escaped(np.log(counts / counts.sum(0))[truth, column], counts, truth).sum(0)
    return total / len(labels)


def escaped(
    logs: Float[np.ndarray, "rows problems"],
    counts: Int[np.ndarray, "classes problems"],
    truth: Int[np.ndarray, "rows problems"],
) -> Float[np.ndarray, "rows problems"]:
    """Log-probabilities, with that of the escape for classes without rows."""
    unseen = counts[truth, np.arange(truth.shape[1])] == 0
    return np.where(unseen, -np.log(len(counts) * (1 + counts.sum(0))), logs)


def _counts(labels: Int[np.ndarray, "rows problems"], classes: int) -> Int[np.ndarray, "classes problems"]:
    return np.stack([(labels == c).sum(0) for c in range(classes)])
