"""C: does the rest of the network move with the feature, as with few other directions?

A feature's direction is fitted on one half of the documents and tried at places of the other half, both ways round.
The movement of the outputs along the target, in units of its spread over the data and times sqrt(p (1 - p)), is the
correlation of feature and target that this direction brings about: between 0 and 1 whatever the units. What moves
off the target is taken off. The same is asked of an interchange, where rows with and without the feature exchange
their coordinates along the direction, and of directions drawn from the activations' covariance at the same length.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls.axes import CAUSAL, Axis, above, below, unasked
from controls.directions import Moments, covariates, directions, moments
from controls.outputs import BLOCK, Moved, Outputs, clean_outputs, run, seen
from controls.subject import Subject, halves


@dataclass(frozen=True)
class Effort:
    """How much is computed."""

    draws: int = 64
    """Resamplings of documents behind each standard error."""
    rows: int = 48
    """Places of each half and each label value at which a feature's direction is tried."""
    matched: int = 999
    """Directions drawn for the null."""
    matched_rows: int = 32
    """Places at which they are tried."""


def causal_axes(
    subject: Subject,
    *,
    level: float,
    seed: int,
    effort: Effort | None = None,
    told: Callable[[int], None] = lambda done: None,
) -> list[Axis]:
    """C of every feature."""
    effort = effort or Effort()
    Y = subject.table
    others = [covariates(Y, f) for f in range(Y.shape[1])]
    half = halves(subject.groups, 2, seed=seed)
    outputs = clean_outputs(subject, Y, others)
    sums = moments(subject.activations, Y, subject.groups)
    null = Matched(subject, outputs, sums.second, effort, seed)
    found = []
    for f in range(Y.shape[1]):
        found.append(_axis(_Trial(subject, outputs, sums, half, f, others[f], effort, seed), null, level))
        told(1)
    return found


class _Trial:
    """One feature's directions, tried at places of the other half of the documents."""

    def __init__(
        self,
        subject: Subject,
        outputs: Outputs,
        sums: Moments,
        half: Int[np.ndarray, " rows"],
        feature: int,
        others: list[int],
        effort: Effort,
        seed: int,
    ) -> None:
        self.subject, self.outputs, self.feature, self.effort = subject, outputs, feature, effort
        y = subject.table[:, feature]
        self.rate = float(y.mean())
        self.rng = np.random.default_rng([seed, 71, feature])
        documents = torch.zeros(int(subject.groups.max()) + 1, dtype=torch.int64)
        documents[torch.from_numpy(subject.groups)] = torch.from_numpy(half)
        self.directions = [
            directions(
                sums,
                feature,
                others,
                (documents == h).double(),
                draws=effort.draws,
                seed=int(self.rng.integers(1 << 30)),
            )
            for h in (0, 1)
        ]
        self.places = [self._places(y, half == 1 - h) for h in (0, 1)]

    def _places(self, y: Int[np.ndarray, " rows"], allowed: np.ndarray) -> tuple[Tensor, Tensor] | None:
        """Numbers of places without and with the feature, as many of each."""
        at = self.subject.places
        sides = [self.rng.permutation(np.flatnonzero(allowed[at] & (y[at] == value))) for value in (0, 1)]
        count = min(self.effort.rows, *(len(side) for side in sides))
        if count == 0:
            return None
        return torch.from_numpy(sides[0][:count]), torch.from_numpy(sides[1][:count])

    def true_length(self) -> tuple[Float[Tensor, " d"], float]:
        """The direction of length 1, and its length without the noise in it.

        The product of the two halves' estimates has the squared length as its mean. Where it is not positive the
        length of their mean is taken, which is too long rather than too short.
        """
        a, b = (d.conditional[0] for d in self.directions)
        product, mean = float(a @ b), (a + b) / 2
        length = product**0.5 if product > 0 else float(mean.norm())
        return mean / mean.norm().clamp(min=1e-30), length

    def steered(self, h: int) -> Float[Tensor, "draws outputs"]:
        """Mean movement from adding the direction where the feature is off and taking it off where it is on."""
        return self._moved(h, self.directions[h].conditional, lambda x, v: torch.ones(len(v), len(x)))

    def read_out(self, h: int) -> Float[Tensor, "draws outputs"]:
        """The same along the discriminant."""
        return self._moved(h, self.directions[h].read_out[None], lambda x, v: torch.ones(len(v), len(x)))

    def interchanged(self, h: int) -> Float[Tensor, "draws outputs"]:
        """The same where pairs of places exchange their coordinates along the direction."""

        def amounts(x: Tensor, v: Tensor) -> Tensor:
            c = x.double() @ v.mT / v.square().sum(1).clamp(min=1e-30)  # (off rows then on rows, draws)
            off, on = c.chunk(2)
            return torch.cat([on - off, on - off]).mT  # (draws, rows)

        return self._moved(h, self.directions[h].conditional, amounts)

    def _moved(
        self, h: int, v: Float[Tensor, "draws d"], amounts: Callable[[Tensor, Tensor], Tensor]
    ) -> Float[Tensor, "draws outputs"]:
        places = self.places[h]
        assert places is not None
        at = torch.cat(places)
        x = self.subject.activations[torch.from_numpy(self.subject.places)[at]]
        sign = torch.cat([torch.ones(len(places[0])), -torch.ones(len(places[1]))]).double()
        step = (amounts(x, v) * sign)[:, :, None] * v[:, None]  # (draws, rows, d)
        changed = (x + step).flatten(0, 1)  # (draws * rows, d)
        values = run(self.subject, changed, at.repeat(len(v))).view(len(v), len(at), -1)
        clean = run(self.subject, x, at)
        moved = (values - clean) * self.outputs.scale * sign[:, None]  # (draws, rows, outputs)
        return torch.einsum("bro,br->bo", moved, self._weights(at, len(v)))

    def _weights(self, at: Int[Tensor, " rows"], draws: int) -> Float[Tensor, "draws rows"]:
        """Equal for the estimate, then those of documents drawn with replacement."""
        of = self.subject.groups[self.subject.places[at.numpy()]]
        which, row = np.unique(of, return_inverse=True)
        drawn = self.rng.multinomial(len(which), np.full(len(which), 1 / len(which)), size=draws)[:, row] + 1e-9
        drawn[0] = 1
        weights = torch.from_numpy(drawn / drawn.sum(1, keepdims=True))
        return weights


class Matched:
    """Directions drawn from the activations' covariance, at places that all features share."""

    def __init__(
        self, subject: Subject, outputs: Outputs, covariance: Float[Tensor, "d d"], effort: Effort, seed: int
    ) -> None:
        self.subject, self.outputs = subject, outputs
        rng = np.random.default_rng([seed, 81])
        values, vectors = torch.linalg.eigh(covariance)
        z = torch.from_numpy(rng.normal(size=(effort.matched, len(values))))
        self.drawn = (z * values.clamp(min=0).sqrt()) @ vectors.mT
        count = min(effort.matched_rows, len(subject.places))
        self.at = torch.from_numpy(rng.choice(len(subject.places), count, replace=False))
        self.x = subject.activations[torch.from_numpy(subject.places)[self.at]]
        self.clean = run(subject, self.x, self.at)

    def movements(self, unit: Float[Tensor, " d"], length: float) -> Float[Tensor, "matched outputs"]:
        """Mean movements, in units of spread, of directions of this length across a direction of length 1."""
        others = self.drawn - torch.outer(self.drawn @ unit, unit)
        others = others * length / others.norm(dim=1, keepdim=True)
        parts = []
        for some in others.split(max(1, BLOCK // len(self.at))):
            changed = (self.x + some[:, None]).flatten(0, 1)  # (some * rows, d)
            values = run(self.subject, changed, self.at.repeat(len(some))).view(len(some), len(self.at), -1)
            parts.append((values - self.clean).mean(1))
        return torch.cat(parts) * self.outputs.scale


def _axis(trial: _Trial, null: Matched, level: float) -> Axis:
    if any(places is None for places in trial.places):
        return unasked("a half of the documents has no place with, or none without, the feature")
    outputs, f, rate = trial.outputs, trial.feature, trial.rate
    if float(outputs.spreads[f]) <= 1e-12:
        return unasked("the target never changes")
    steered = [trial.steered(h) for h in (0, 1)]
    main = _both([seen(outputs, f, moved, rate) for moved in steered])
    swap = _both([seen(outputs, f, trial.interchanged(h), rate) for h in (0, 1)])
    guard = _both([seen(outputs, f, trial.read_out(h), rate) for h in (0, 1)])
    drawn = seen(outputs, f, null.movements(*trial.true_length()), rate)
    against = drawn.on.abs() - drawn.off
    ranks = [float((1 + (against >= one.on[0].abs() - one.off[0]).sum()) / (1 + len(against))) for one in (main, guard)]
    sides = [_tested(one, level) for one in (main, swap)]
    agree = float(torch.sign(main.on[0]) * torch.sign(swap.on[0])) > 0
    p = max(*ranks, *(side.p for side in sides)) if agree else 1.0
    p_absent = max(side.p_absent for side in sides)
    if p > level and _moves_elsewhere(steered, rate):
        return replace(sides[0], p=p, p_absent=1.0, why="it moves outputs other than its target")
    return replace(sides[0], p=p, p_absent=p_absent)


def _both(each: list[Moved]) -> Moved:
    """Mean over the two ways round; draws of the two are independent, so they are paired as they come."""
    return Moved(sum(one.on for one in each) / 2, sum(one.off for one in each) / 2)


def _tested(moved: Moved, level: float) -> Axis:
    on, off = float(moved.on[0].abs()), float(moved.off[0])
    error = float(moved.on[1:].std())
    p = above(on - off, error, CAUSAL.high)
    return Axis(on - off, error, p, below(on, error, CAUSAL, level=level))


def _moves_elsewhere(steered: list[Float[Tensor, "draws outputs"]], rate: float) -> bool:
    """Whether the movement of all outputs together is shown to be more than an absent feature's may be.

    The product of the two halves' movements has the squared length as its mean, whatever the noise in each.
    """
    a, b = steered
    squares = (a * b).sum(1) * rate * (1 - rate)
    return float(squares[0] - 1.645 * squares[1:].std()) > CAUSAL.high**2
