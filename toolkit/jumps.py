"""Jumps in curves of training: episodes that go faster than what came before them, with a stated false-alarm rate.

A smooth fit slows down steadily, so its speed only falls. A jump is a peak of the speed after a trough: the speed
has to rise from the lowest value since the last peak by more than noise would make it rise.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.ndimage import median_filter

ALPHA = 0.01
"""At most this share of curves whose speed never rises yields any jump."""
_NEAR = 31
_CURVES = 4000


def noise(speed: np.ndarray) -> np.ndarray:
    """Local standard deviation of each value, from second differences: a median over neighbours, so peaks do not count.

    For independent noise of deviation s, the second difference has deviation sqrt(6) s.
    """
    bends = np.abs(np.diff(speed, 2)) / np.sqrt(6) / 0.6745
    local = median_filter(np.pad(bends, 1, mode="edge"), size=_NEAR, mode="nearest")
    return np.maximum(local, np.median(bends))


def jumps(speed: np.ndarray, *, least: float = 0.0, alpha: float = ALPHA) -> list[int]:
    """Places of the peaks of a speed (one value a bin of steps, independent noise), from the first on.

    Turning points with a threshold: a trough is left when the speed exceeds it by `threshold` deviations, the peak
    is passed when it falls by as much, or the curve ends. A speed that falls from the start has no jump there.

    Args:
        least: what the curve has to gain between trough and peak over going on at the trough's speed.
    """
    rise = threshold(len(speed), alpha) * noise(speed)
    found, climbing, trough, extreme = [], False, 0, 0
    for t, value in enumerate(speed):
        margin = max(rise[t], rise[extreme])
        if climbing and value < speed[extreme] - margin:
            found.append((trough, extreme))
            climbing, extreme = False, t
        elif not climbing and value > speed[extreme] + margin:
            climbing, trough, extreme = True, extreme, t
        elif (value > speed[extreme]) == climbing:
            extreme = t
    if climbing:
        found.append((trough, extreme))
    return [peak for low, peak in found if (speed[low : peak + 1] - speed[low]).sum() >= least]


@cache
def threshold(bins: int, alpha: float) -> float:
    """Rise, in deviations, that a share `alpha` of constant speeds with Gaussian noise passes somewhere.

    `jumps` asks for the larger of two such margins, so its rate is lower still. A constant speed is the hardest of
    those that never rise: where the speed falls, noise has to make up for it.
    Simulated with `noise` as the scale, so that its own error is part of the rate.
    """
    draws = np.random.default_rng([bins, 0]).standard_normal((_CURVES, bins))
    scales = np.stack([noise(row) for row in draws])
    rises = draws - np.minimum.accumulate(draws, axis=1)
    return float(np.quantile((rises / scales).max(1), 1 - alpha))


def coincidence(events: Sequence[int], others: Sequence[int], window: int) -> list[bool]:
    """Whether each event has another within `window` bins."""
    return [any(abs(event - other) <= window for other in others) for event in events]


def covered(others: Sequence[int], window: int, bins: int) -> float:
    """Share of bins within `window` of an event: what coincidence reaches when times are rotated at random."""
    near = np.abs(np.arange(bins)[:, None] - np.array([*others, -bins])[None]) <= window
    return float(near.any(1).mean())


def steady(speed: np.ndarray, *, seed: int) -> np.ndarray:
    """The same speeds in falling order, smoothed, with fresh noise of the same local size: a curve without a jump."""
    falling = -np.sort(-speed)
    smooth = np.convolve(np.pad(falling, 2, mode="edge"), np.ones(5) / 5, mode="valid")
    smooth = np.minimum.accumulate(smooth)
    return smooth + noise(speed) * np.random.default_rng(seed).standard_normal(len(speed))
