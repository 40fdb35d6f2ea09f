"""What a language model must beat: the unigram and the bigram of its own training tokens."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

SMOOTHING = 0.5
"""Added to every unigram count (Jeffreys' prior), so that unseen tokens stay possible."""


@dataclass(frozen=True)
class Baselines:
    """Cross-entropies on the validation tokens, nats a token, of models fitted on the training tokens."""

    unigram: float
    """Smoothed unigram."""
    bigram: float
    """Interpolated Kneser-Ney bigram."""


def baselines(train: Int[Tensor, " tokens"], validation: Int[Tensor, " held"], vocabulary: int) -> Baselines:
    """Both baselines on every validation token but the first, which is what the model is measured on."""
    seen, held = train.numpy(), validation.numpy()
    unigram = np.bincount(seen, minlength=vocabulary) + SMOOTHING
    share = unigram / unigram.sum()
    return Baselines(
        float(-np.log(share[held[1:]]).mean()), float(-np.log(KneserNey(seen, vocabulary)(held[:-1], held[1:])).mean())
    )


class KneserNey:
    """p(w | u) = max(c(uw) - D, 0) / c(u) + D N(u.) / c(u) q(w), q(w) from the number of contexts w was seen in.

    Chen and Goodman (1999), section 2.7, interpolated; D = n1 / (n1 + 2 n2) over pairs seen once and twice (Ney et al.
    1994). q is discounted in the same way towards the uniform distribution; a context never seen has q alone.
    """

    def __init__(self, tokens: Int[np.ndarray, " tokens"], vocabulary: int) -> None:
        tokens = tokens.astype(np.int64)
        self.vocabulary = vocabulary
        self.pairs, self.counts = np.unique(tokens[:-1] * vocabulary + tokens[1:], return_counts=True)
        first, second = np.divmod(self.pairs, vocabulary)
        self.discount = _discount(self.counts)
        self.total = np.bincount(first, weights=self.counts, minlength=vocabulary)
        self.continuations = np.bincount(first, minlength=vocabulary)
        contexts = np.bincount(second, minlength=vocabulary)
        discount = _discount(contexts[contexts > 0])
        left = discount * (contexts > 0).sum() / contexts.sum()
        self.lower = np.maximum(contexts - discount, 0) / contexts.sum() + left / vocabulary

    def __call__(
        self, before: Int[np.ndarray, " pairs"], token: Int[np.ndarray, " pairs"]
    ) -> Float[np.ndarray, " pairs"]:
        """Probability of each token after the one before it."""
        wanted = before.astype(np.int64) * self.vocabulary + token
        at = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        counts = np.where(self.pairs[at] == wanted, self.counts[at], 0)
        total = np.maximum(self.total[before], 1)
        left = np.where(self.total[before] > 0, self.discount * self.continuations[before] / total, 1.0)
        return np.maximum(counts - self.discount, 0) / total + left * self.lower[token]


def _discount(counts: Int[np.ndarray, " types"]) -> float:
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    # Without singletons the estimate is 0 and nothing would be left for unseen pairs; half is the middle of (0, 1).
    return float(once / (once + 2 * twice)) if once else 0.5
