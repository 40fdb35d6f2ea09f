"""Held-out scores of many columns of labels, all fitted at once on the same rows."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from toolkit.heads import log_probabilities
from toolkit.probe_base import GRID, Probe
from toolkit.probe_inputs import ProbeRows, as_array

# Logits at a time, rows * columns of labels * penalties * outputs.
_AT_ONCE = 1 << 23


def label_blocks(
    probe: Probe, data: ProbeRows, labels: Int[np.ndarray, "rows problems"]
) -> Iterator[Int[np.ndarray, "rows part"]]:
    """The columns of labels in parts that memory can hold at once."""
    outputs = 1 if len(data.classes) == 2 else len(data.classes)
    width = len(labels) * outputs * (1 if probe.get_params().get("l2", 0.0) is not None else len(GRID))
    yield from np.array_split(labels, max(1, width * labels.shape[1] // _AT_ONCE), axis=1)


def held_out_scores(
    probe: Probe,
    data: ProbeRows,
    labels: Int[np.ndarray, "rows problems"],
    fold_of: Int[np.ndarray, " rows"],
    *,
    score: str = "accuracy",
) -> Float[np.ndarray, "rows problems"] | Bool[np.ndarray, "rows problems"]:
    """Each row's score by the probe fitted on the other folds: right or wrong, or the label's log-probability in nats.

    A class that none of the rows fitted on has is never guessed. Labels are numbers of `data.classes`.
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
    return as_array(each if score == "accuracy" else each.double())
