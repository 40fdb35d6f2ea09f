"""Candidates for steering an attribute, all from the same rows and labels."""

import numpy as np
from jaxtyping import Float, Int

from toolkit.probes import LinearProbe
from toolkit.steering import dual_basis, haufe_patterns, mean_differences
from toolkit.steering_program import steering_vectors

PROBE, DUAL, WEIGHTED, LOOSE = "probe", "dual", "weighted dual", "loose dual"
LABELS, MEANS, RANDOM = "patterns of labels", "differences of means", "random"
FAMILIES = (PROBE, DUAL, WEIGHTED, LOOSE, LABELS, MEANS, RANDOM)
_LEAK = 0.1
"""What the loose dual may move another reading by, where each reading has variance one and its own moves by one."""


def families(
    X: Float[np.ndarray, "rows d"],
    labels: Float[np.ndarray, "rows m"],
    *,
    groups: Int[np.ndarray, " rows"] | None,
    l2: float | None,
    seed: int,
) -> dict[str, Float[np.ndarray, "d m"]]:
    """A column an attribute for each family.

    Probes are logistic, one an attribute, their rows W scaled to readings of variance one. The dual is W^+, the
    weighted one Sigma W^T (W Sigma W^T)^-1, which is the pattern of the probes' readings; the loose one is the shortest
    vector by Sigma that leaks at most _LEAK. Patterns of labels regress activations on all labels at once.

    Raises:
        UserError: what probes and steering vectors refuse.
    """
    sigma = np.cov(X.T)
    probe = LinearProbe(l2=l2, device="cpu")
    W = np.stack([probe.fit(X, y, groups=groups).directions_[0] for y in labels.T])
    W /= np.sqrt(np.einsum("md,de,me->m", W, sigma, W))[:, None]
    return {
        PROBE: W.T,
        DUAL: dual_basis(W).vectors,
        WEIGHTED: dual_basis(W, covariance=sigma).vectors,
        LOOSE: steering_vectors(W, covariance=sigma, tolerance=_LEAK).vectors,
        LABELS: haufe_patterns(X, labels),
        MEANS: np.concatenate([mean_differences(X, y) for y in labels.T], 1),
        RANDOM: np.random.default_rng([seed, 7]).standard_normal((X.shape[1], labels.shape[1])),
    }
