"""The error of circuits in superposition that theory expects (`superposed_circuits`), in closed form.

Let p = m S / D be the share of large neurons that a circuit uses, and l the chance that two circuits do not lie apart
by construction (1 for many circuits). Neurons before their ReLU and inputs have second moment 1.

1. Reading one's input back: each of the k' other circuits called puts S p l signed numbers of size 1/S on an entry's
   S copies, so the noise has variance k' m l / D, whatever S is. It is common to all copies of a neuron.
2. A large neuron of a called circuit is also used by any other called one, with chance p l each: a collision, of
   variance 1.
3. It is used by (T - k) p l circuits that are not called, each writing noise of variance k m l / D (1. with k' = k):
   together v = (T - k) k m^2 S l^2 / D^2. One that uses two copies of a neuron writes the same on both with chance
   (S - 1) / (D - 1): that part of v is common to the copies, 1 / m of it where codes are dense.

The read-out takes the mean of S copies, which divides 2. and 3. by S, and a ReLU lets noise through half of the time.
To first order the squared error of an answer is so, without S,

    (k - 1) (1/2 + c) m / D + (T - k) k m^2 / (2 D^2),   c = 3/4 - 1/pi (COLLISION),

which for T m > D is the second term: error = T k m^2 / D^2 over twice the variance of an answer, that is +1 in T and k,
+2 in m and -2 in D on log-log axes, with break-down at T k m^2 ~ D^2: as many circuits as large parameters over small
ones and k, the count that Linsefors and Bushnaq 2025 ("Circuits in Superposition 2") reach with answers in
superposition too, by silencing circuits that are not called, which is not done here. Constants are derived here.

Where answers are written into D numbers too and read from there (`stored_error`), the error has one more term: of each
answer written by another circuit a share m l / D, in square, is read with one's own. Of a circuit called that is about
1/2; of the T - k others it is their rectified noise, v / (2 pi) and more, so that this term grows as T^2 and break-down
comes much earlier.

Beyond first order a ReLU also turns noise into a bias that no averaging over copies removes; it grows with v and so
with S, which is why dense codes fail. `predicted_error` has it: noise 1. and 3. Gaussian, collisions binomial.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq
from scipy.stats import binom, chi2, norm

from toolkit.errors import check_types, require

COLLISION = 3 / 4 - 1 / math.pi
"""c = E (ReLU(a + b) - ReLU(a))^2 for independent standard Gaussians, .432 (kernel of Cho and Saul 2009, section 2)."""


@dataclass(frozen=True)
class Sizes:
    """What the error depends on."""

    circuits: int
    """T."""
    large: int
    """D."""
    width: int
    """m, at least 2."""
    k: int
    """Circuits called at once."""
    copies: int
    """S."""

    def __post_init__(self) -> None:
        check_types(self)
        fits = 1 <= self.k <= self.circuits and self.width >= 2 and 1 <= self.width * self.copies <= self.large
        require(fits, f"sizes must keep to 1 <= k <= T, m >= 2 and 1 <= m S <= D, got {self}")

    @property
    def overlap(self) -> float:
        """l: the chance that two circuits were not dealt from one permutation."""
        each = self.large // (self.width * self.copies)
        full, rest = divmod(self.circuits, each)
        if not full or (full == 1 and not rest):
            return 0.0
        together = full * each * (each - 1) + rest * (rest - 1)
        return 1 - together / (self.circuits * (self.circuits - 1))

    @property
    def heard(self) -> float:
        """Variance of a called circuit's input noise, 1."""
        return (self.k - 1) * self.width * self.overlap / self.large

    @property
    def written(self) -> float:
        """v: variance that circuits not called put on a large neuron, 3."""
        own = self.k * self.width * self.overlap / self.large
        return (self.circuits - self.k) * self.width * self.copies / self.large * self.overlap * own

    @property
    def echoed(self) -> float:
        """The part of v that is common to the copies of a neuron."""
        return self.written * (self.copies - 1) / (self.large - 1)


def first_order_error(sizes: Sizes) -> float:
    """The two terms above over the variance of an answer: right where it is well below 1."""
    share = sizes.overlap * sizes.width / sizes.large
    active = (sizes.k - 1) * (0.5 + COLLISION) * share
    idle = (sizes.circuits - sizes.k) * sizes.k * share * share / 2
    return (active + idle) / answer_variance(sizes.width)


def predicted_error(sizes: Sizes) -> float:
    """Squared error over the variance of an answer, all orders, by quadrature.

    Given the neuron a (standard Gaussian) and the noise common to its copies, their ReLUs have a mean and a variance
    over what is each one's own; the squared bias of that mean plus the variance over S, averaged, is the error.
    """
    mean, variance = _copies(sizes, called=True)
    return _averaged((mean - np.maximum(_NEURON, 0)[:, None]) ** 2 + variance) / answer_variance(sizes.width)


def stored_error(sizes: Sizes) -> float:
    """The same where all circuits write their answers into one stream of D numbers, from which they are read.

    A circuit's second layer keeps the second moment of what it reads, the mean of copies.
    """
    called, idle = (
        _averaged(mean**2 + variance) for mean, variance in (_copies(sizes, called=c) for c in (True, False))
    )
    leak = (sizes.k - 1) * called + (sizes.circuits - sizes.k) * idle
    return predicted_error(sizes) + sizes.overlap * sizes.width / sizes.large * leak / answer_variance(sizes.width)


_NEURON = np.linspace(-7, 7, 561)
"""Values a of a small neuron."""
_NODES, _CHANCES = np.polynomial.hermite_e.hermegauss(21)
"""Of the noise common to copies."""


def _averaged(values: Float[np.ndarray, "neurons nodes"]) -> float:
    """Over a small neuron and the noise common to its copies."""
    weight = norm.pdf(_NEURON) * (_NEURON[1] - _NEURON[0])
    return float(weight @ values @ _CHANCES / _CHANCES.sum())


def _copies(sizes: Sizes, *, called: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and variance over S, of the mean of a neuron's copies after the ReLU, (neurons, nodes), given both.

    Of a circuit that is not called the neuron is 0, and all k that are called make its noise.
    """
    others = sizes.k - 1 if called else sizes.k
    heard = others * sizes.width * sizes.overlap / sizes.large
    u = _NEURON[:, None] * called + math.sqrt(heard + sizes.echoed) * _NODES
    mean, square = np.zeros_like(u), np.zeros_like(u)
    p = sizes.width * sizes.copies / sizes.large * sizes.overlap
    for collisions in range(others + 1):
        chance = float(binom.pmf(collisions, others, p))
        first, second = _rectified(u, sizes.written - sizes.echoed + collisions * (1 + sizes.heard))
        mean, square = mean + chance * first, square + chance * second
    return mean, (square - mean**2) / sizes.copies


def _rectified(mean: np.ndarray, variance: float) -> tuple[np.ndarray, np.ndarray]:
    """First and second moments of ReLU(Gaussian)."""
    if variance == 0:
        return np.maximum(mean, 0), np.maximum(mean, 0) ** 2
    deviation = math.sqrt(variance)
    below, density = norm.cdf(mean / deviation), norm.pdf(mean / deviation)
    return mean * below + deviation * density, (mean**2 + variance) * below + mean * deviation * density


def breakdown(sizes: Sizes, over: str, *, error: Callable[[Sizes], float] = predicted_error) -> float:
    """The T (`circuits`) or k at which a predicted error reaches 1, interpolated on log axes between whole numbers.

    Raises:
        UserError: `over` is neither, or the error does not reach 1 (with T up to 2^20, k up to T).
    """
    require(over in ("circuits", "k"), f"break-down is over circuits or k, got {over!r}")
    most = 2**20 if over == "circuits" else sizes.circuits
    first = sizes.k if over == "circuits" else 1

    def log_error(at: float) -> float:
        below, above = (error(_at(sizes, over, n)) for n in (math.floor(at), math.ceil(at)))
        part = at - math.floor(at)
        return (1 - part) * math.log(max(below, 1e-300)) + part * math.log(max(above, 1e-300))

    high = first
    while high < most and log_error(high) < 0:
        high = min(2 * high, most)
    require(log_error(high) >= 0, f"the error of {sizes} does not reach 1 up to {over} = {high}")
    return float(brentq(log_error, max(first, high // 2), high, xtol=1e-3)) if high > first else float(first)


def _at(sizes: Sizes, over: str, value: int) -> Sizes:
    return replace(sizes, circuits=value) if over == "circuits" else replace(sizes, k=value)


@cache
def _moments(width: int) -> tuple[float, float]:
    """Variance of an answer, and what the best affine function of the input leaves of it, over draws of the circuit."""
    nodes, chances = np.polynomial.hermite_e.hermegauss(61)
    grid = (np.arange(2000) + 0.5) / 2000
    bias = nodes[:, None] / math.sqrt(width)
    deviation = np.sqrt(chi2.ppf(grid, width - 1) / width)[None]
    ratio = bias / deviation
    mean = bias * norm.cdf(ratio) + deviation * norm.pdf(ratio)
    linear = (norm.cdf(ratio) * deviation) ** 2  # Stein: the covariance of ReLU with its Gaussian is its slope's mean
    second = (bias**2 + deviation**2) * norm.cdf(ratio) + bias * deviation * norm.pdf(ratio)
    over = [float(chances @ value.mean(1) / chances.sum()) for value in (second - mean**2, linear)]
    return over[0], over[0] - over[1]


def answer_variance(width: int) -> float:
    """Of an entry of y about its circuit's mean: E Var ReLU(N(w_0, |w|^2)) over rows w of W1, as W2 keeps variance."""
    return _moments(width)[0]


def affine_level(width: int) -> float:
    """Error of the best affine answers to each circuit: below it ReLUs are computed. About a quarter."""
    return _moments(width)[1] / _moments(width)[0]
