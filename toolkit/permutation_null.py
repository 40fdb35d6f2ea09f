"""What a probe scores on labels dealt anew: all fits at once, on the same rows, by the same procedure."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from toolkit.coding_inputs import as_rows
from toolkit.errors import require, unknown
from toolkit.heads import log_probabilities
from toolkit.label_permutations import permuted_rows
from toolkit.probe_base import GRID, Probe
from toolkit.probe_inputs import ProbeRows, as_array, blind_folds, probe_rows

SCORES = ("accuracy", "log_likelihood")
# Labels fitted at a time, rows * problems * penalties.
_AT_ONCE = 1 << 23


@dataclass(frozen=True)
class PermutationNull:
    """A probe's score and those of the same probe on labels dealt anew."""

    score: str
    """accuracy, or log_likelihood in nats a row; both of held-out rows."""
    scheme: str
    """How labels were dealt."""
    observed: float
    """Score with the labels as they are."""
    null: Float[np.ndarray, " n"]
    """Scores with labels dealt anew."""

    @property
    def p(self) -> float:
        """(1 + number of null scores at least as high) / (1 + n): valid at any n (Phipson and Smyth 2010)."""
        return float((1 + (self.null >= self.observed).sum()) / (1 + len(self.null)))


def permutation_null(
    probe: Probe,
    X: Any,
    y: Any,
    *,
    scheme: str = "documents",
    groups: Any = None,
    tokens: Any = None,
    n: int = 1000,
    score: str = "accuracy",
    parts: int = 3,
    seed: int = 0,
) -> PermutationNull:
    """Score a probe by cross-validation over documents, with its labels and with n permutations of them.

    Every column of labels goes through the same folds and, where the probe has no penalty of its own, the same choice
    of one. "iid" is anticonservative where rows of a document are alike: text wants "documents", "tokens" or "shift"
    (`toolkit.label_permutations`).

    Args:
        probe: any probe of `toolkit.probes`, unfitted; its settings are used.
        X: (rows, d) activations.
        y: (rows,) labels.
        groups: (rows,) documents, which folds keep whole.
        tokens: (rows,) token ids, for scheme "tokens".
        parts: folds of the cross-validation.

    Raises:
        UserError: what `probe.fit`, `toolkit.probe_inputs.blind_folds` and `permuted_rows` refuse, an unknown score.
    """
    if score not in SCORES:
        raise unknown("score", score, SCORES)
    data = probe_rows(as_rows(as_array(X), "X"), y, None, groups)
    source = permuted_rows(data.labels, scheme=scheme, groups=groups, tokens=tokens, n=n, seed=seed)
    fold_of = blind_folds(data, parts, seed=seed)
    width = len(data.labels) * (1 if probe.get_params().get("l2", 0.0) is not None else len(GRID))
    columns = np.concatenate([np.arange(len(data.labels))[:, None], source], 1)
    blocks = np.array_split(columns, max(1, width * columns.shape[1] // _AT_ONCE), axis=1)
    found = np.concatenate([_scores(probe, data, data.labels[some], fold_of, score) for some in blocks])
    return PermutationNull(score, scheme, float(found[0]), found[1:])


def _scores(
    probe: Probe,
    data: ProbeRows,
    labels: Int[np.ndarray, "rows problems"],
    fold_of: Int[np.ndarray, " rows"],
    score: str,
) -> Float[np.ndarray, " problems"]:
    """Mean held-out score of each column of labels."""
    total = np.zeros(labels.shape[1])
    for fold in range(int(fold_of.max()) + 1):
        kept = fold_of != fold
        present = [len(np.unique(column)) for column in labels[kept].T]
        require(
            min(present) == len(data.classes),
            f"y: a permutation leaves a fold without one of the {len(data.classes)} classes: give more rows",
        )
        part = data.subset(kept)
        heads = probe.fit_together(part, probe.to_tensor(labels[kept]))
        with torch.no_grad():
            guesses = log_probabilities(heads.logits(probe.to_tensor(data.X[~kept])))  # (rows, problems, classes)
            truth = probe.to_tensor(labels[~kept])
            if score == "accuracy":
                each = (guesses.argmax(2) == truth).double()
            else:
                each = guesses.gather(2, truth[..., None])[..., 0].double()
        total += as_array(each.sum(0))
    return total / len(labels)
