"""What a probe scores on labels dealt anew: all fits at once, on the same rows, by the same procedure."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from toolkit.coding_inputs import as_rows
from toolkit.errors import require, unknown
from toolkit.held_out import held_out_scores, label_blocks
from toolkit.label_permutations import permuted_rows
from toolkit.probe_base import Probe
from toolkit.probe_inputs import as_array, blind_folds, check_members, probe_rows

SCORES = ("accuracy", "log_likelihood")


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
    check_members(data, parts, name="parts")
    source = permuted_rows(data.labels, scheme=scheme, groups=groups, tokens=tokens, n=n, seed=seed)
    fold_of = blind_folds(data, parts, seed=seed, name="parts")
    columns = data.labels[np.concatenate([np.arange(len(data.labels))[:, None], source], 1)]
    for fold in range(parts):
        present = [len(np.unique(column)) for column in columns[fold_of != fold].T]
        require(
            min(present) == len(data.classes),
            f"y: a permutation leaves a fold without one of the {len(data.classes)} classes: give more rows",
        )
    found = [
        held_out_scores(probe, data, some, fold_of, score=score).mean(0) for some in label_blocks(probe, data, columns)
    ]
    scores = np.concatenate(found)
    return PermutationNull(score, scheme, float(scores[0]), scores[1:])
