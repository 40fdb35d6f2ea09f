"""Words whose truth is known, in place of a model's: types with vectors of their own, parts of speech with or without.

Types are frequent as in Zipf's law. Rows before training hold their type and noise; rows after hold a direction for
the part of speech as well, the stronger the deeper. Both tell the part of speech: one by heart, one by rule.
"""

import numpy as np
from jaxtyping import Float, Int

from experiments.network.words import Words

TYPES, D, CLASSES, DOCUMENTS, LENGTH = 40, 16, 4, 60, 30
"""More types than dimensions: no linear probe can have every labelling of them."""
NOISE = 0.08
"""Standard deviation of each coordinate, beside type vectors of norm 1."""


def plant_words(arm: str, replicate: int, seed: int, *, signal: float) -> Words:
    """Two layers of rows. `signal` is the norm of the direction of a part of speech in the last layer of "trained"."""
    vectors, classes = _language(seed)
    draw = np.random.default_rng([seed, 59, replicate])
    chances = 1 / np.arange(2, TYPES + 2)
    types = draw.choice(TYPES, p=chances / chances.sum(), size=DOCUMENTS * LENGTH)
    angle = 2 * np.pi * classes[types] / CLASSES
    rule = np.zeros((len(types), D))
    rule[:, 0], rule[:, 1] = np.cos(angle), np.sin(angle)  # parts of speech on a circle: two dimensions hold them all
    strengths = {0: 0.5 * signal, 1: signal} if arm == "trained" else {0: 0.0, 1: 0.0}
    noise = np.random.default_rng([seed, 61, replicate, len(arm)])
    layers = {
        depth: (vectors[types] + strength * rule + NOISE * noise.standard_normal((len(types), D))).astype(np.float32)
        for depth, strength in strengths.items()
    }
    return Words(layers, classes[types], types, np.repeat(np.arange(DOCUMENTS), LENGTH))


def _language(seed: int) -> tuple[Float[np.ndarray, "types d"], Int[np.ndarray, " types"]]:
    """The types' vectors, none of them in the plane of the parts of speech, and their parts of speech."""
    draw = np.random.default_rng([seed, 67])
    vectors = draw.standard_normal((TYPES, D))
    vectors[:, :2] = 0
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), draw.permutation(TYPES) % CLASSES
