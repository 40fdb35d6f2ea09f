"""How far a selectivity can be trusted: documents and control tasks resampled together."""

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

_RESAMPLES = 2000
# Documents drawn at a time, resamples * documents.
_AT_ONCE = 1 << 22


def resampled_interval(
    sizes: Float[np.ndarray, " documents"],
    hits: Float[np.ndarray, " documents"],
    control_hits: Float[np.ndarray, "documents tasks"],
    *,
    confidence: float,
    seed: int,
) -> tuple[float, float]:
    """Two-sided interval of accuracy less mean control accuracy.

    Documents and tasks are drawn with replacement, each on their own (Owen 2007, the pigeonhole bootstrap, which errs
    on the side of too wide); the spread of 2,000 draws is multiplied by a t quantile for the number of documents or of
    tasks, whichever is smaller, and both are corrected for their plug-in variance, since percentiles are too narrow for
    few of them. The fits are not repeated.

    Args:
        sizes: rows of each document.
        hits: rows right.
        control_hits: rows right on each control task.
    """
    documents, tasks = control_hits.shape
    rng = np.random.default_rng([seed, 47])
    block = max(1, _AT_ONCE // documents)
    found = []
    for start in range(0, _RESAMPLES, block):
        count = min(block, _RESAMPLES - start)
        w = rng.multinomial(documents, np.full(documents, 1 / documents), size=count).astype(float)
        v = rng.multinomial(tasks, np.full(tasks, 1 / tasks), size=count)
        v = 1 + (v - 1) * (tasks / (tasks - 1)) ** 0.5
        control = ((w @ control_hits) * v).sum(1) / tasks
        found.append((w @ hits - control) / (w @ sizes))
    spread = float(np.concatenate(found).std()) * (documents / (documents - 1)) ** 0.5
    middle = float((hits.sum() - control_hits.sum() / tasks) / sizes.sum())
    reach = float(stdtrit(min(documents, tasks) - 1, (1 + confidence) / 2)) * spread
    return middle - reach, middle + reach
