"""The Donoho-Tanner yardstick: how sparse a code must be for l1 minimisation to find it in a random dictionary."""

import math

from scipy.optimize import brentq
from scipy.special import ndtr

from toolkit.errors import require


def phase_transition(n: int, d: int, *, positive: bool = False) -> float:
    """k*, the sparsity up to which l1 minimisation recovers a random code of n entries from d Gaussian measurements.

    It solves psi(k*/n) = d/n, where n psi is, up to an error of 2 sqrt(n/k), the statistical dimension of the descent
    cone of the l1 norm at a k-sparse point (Amelunxen, Lotz, McCoy and Tropp 2014, "Living on the edge", proposition
    4.5): psi(rho) = inf over t >= 0 of rho (1 + t^2) + (1 - rho) c E (g - t)_+^2 for a standard normal g, with c = 2,
    and with c = 1 for codes known to be non-negative (`positive`). Recovery passes from nearly certain to hopeless
    within a few sqrt(n) measurements. k*/d is the weak threshold of Donoho and Tanner (2009), "Counting faces of
    randomly projected polytopes when the projection radically lowers dimension".

    A yardstick only: atoms that were learned are no Gaussian directions, and `fuchs` judges a given code.

    At the minimising t, with Phi and phi the normal distribution function and density, both sides have closed forms:
    k/d = 1 - t Phi(-t) / phi(t) and d/n = c phi(t) / (t + c (phi(t) - t Phi(-t))).

    Raises:
        UserError: unless n and d are at least 1.
    """
    require(n >= 1 and d >= 1, f"n={n}, d={d}: both are at least 1")
    if d >= n:
        return float(n)
    sides = 1.0 if positive else 2.0

    def excess(t: float) -> float:
        density = math.exp(-t * t / 2) / math.sqrt(2 * math.pi)
        return sides * density / (t + sides * (density - t * ndtr(-t))) - d / n

    t = brentq(excess, 0.0, 37.0, xtol=1e-13)  # d/n falls from 1 at t=0 to 1e-298
    return d * (1 - t * ndtr(-t) * math.sqrt(2 * math.pi) * math.exp(t * t / 2))
