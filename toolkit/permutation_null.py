"""What a probe scores on labels dealt anew: all fits at once, on the same rows, by the same procedure."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from toolkit.coding_inputs import as_rows
from toolkit.errors import unknown
from toolkit.held_out import baselines, held_out_scores, label_blocks
from toolkit.label_permutations import permuted_rows
from toolkit.probe_base import Probe, check_probe
from toolkit.probe_inputs import as_array, blind_folds, check_count, check_members, probe_rows
from toolkit.probe_settings import check_settings

SCORES = ("accuracy", "log_likelihood")


@dataclass(frozen=True, eq=False)
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
    observed_baseline: float
    """What the base rate of the other folds' labels alone scores; 0 where every column has the same base rate."""
    null_baselines: Float[np.ndarray, " n"]
    """The same with labels dealt anew."""

    @property
    def p(self) -> float:
        """(1 + number of null scores at least as high) / (1 + n), scores less their baselines.

        Valid at any n (Phipson and Smyth 2010) where what the scheme exchanges is exchangeable. Baselines are for
        documents (or types) whose size depends on their label, which are not: that would be found without any rows. An
        accuracy can exceed a high base rate by little, so that log_likelihood finds more there.
        """
        excess = self.null - self.null_baselines
        least = self.observed - self.observed_baseline - 1e-12  # ties are ties however differences round
        return float((1 + (excess >= least).sum()) / (1 + len(excess)))


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
        UserError: what `probe.fit`, `toolkit.probe_inputs.blind_folds` and `permuted_rows` refuse, an unknown score,
            what is no probe.
    """
    check_probe(probe)
    if score not in SCORES:
        raise unknown("score", str(score), SCORES)
    check_count(parts, "parts", least=2)
    data = probe_rows(as_rows(as_array(X), "X"), y, None, groups)
    check_settings(probe, data)
    check_members(data, parts, name="parts")
    source = permuted_rows(data.labels, scheme=scheme, groups=groups, tokens=tokens, n=n, seed=seed)
    fold_of = blind_folds(data, parts, seed=seed, name="parts")
    columns = data.labels[np.concatenate([np.arange(len(data.labels))[:, None], source], 1)]
    found = [
        held_out_scores(probe, data, some, fold_of, score=score).mean(0) for some in label_blocks(probe, data, columns)
    ]
    scores, base = np.concatenate(found), np.zeros(n + 1)
    if (np.sort(columns, 0) != np.sort(data.labels)[:, None]).any():
        base = baselines(columns, fold_of, len(data.classes), score=score)
    return PermutationNull(score, scheme, float(scores[0]), scores[1:], float(base[0]), base[1:])
