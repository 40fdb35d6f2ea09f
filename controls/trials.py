"""One feature's directions, tried at places whose documents they were not fitted on."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls.directions import Directions
from controls.outputs import Outputs, Target, run
from controls.subject import Subject


@dataclass(frozen=True)
class Place:
    """Where directions are tried; places without and with the feature take turns."""

    at: Int[Tensor, " places"]
    """Numbers of places."""
    sign: Float[Tensor, " places"]
    """1 where the feature is off and its direction is added, -1 where it is on and it is taken off."""
    units: Int[np.ndarray, " places"]
    """What each is resampled with."""

    def first(self, count: int) -> "Place":
        """Some of them."""
        return Place(self.at[:count], self.sign[:count], self.units[:count])


@dataclass(frozen=True)
class Effect:
    """Of one way to move the activations."""

    on: float
    """Mean movement of the target, as a correlation; signed."""
    error: float
    """Its standard error: of the direction, and of the mean over places."""
    off: float
    """Root mean square of what moves beside it."""


class Trial:
    """Movements of the outputs along a feature's two estimates of its direction."""

    def __init__(
        self,
        subject: Subject,
        outputs: Outputs,
        aim: Target,
        where: Place,
        both: list[Directions],
        drawn_rows: int,
    ) -> None:
        self.subject, self.outputs, self.aim, self.where, self.both = subject, outputs, aim, where, both
        self.few = where.first(2 * drawn_rows)
        self.main = [self.moved(d.conditional[:1], where)[0] for d in both]  # (places, outputs) each
        self.drawn = [self.moved(d.conditional[1:], self.few) for d in both]  # (draws, few places, outputs)

    @torch.no_grad()
    def moved(
        self,
        v: Float[Tensor, "some d"],
        where: Place,
        amounts: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "some places outputs"]:
        """Movements of the outputs in units of their spread, towards the feature, by each vector at each place."""
        x = self.subject.activations[torch.from_numpy(self.subject.places)[where.at]]
        size = torch.ones(len(v), len(x), dtype=torch.float64) if amounts is None else amounts(x.double())
        step = (size * where.sign)[:, :, None] * v[:, None]  # (some, places, d)
        changed = (x + step).flatten(0, 1)  # (some * places, d)
        values = run(self.subject, changed, where.at.repeat(len(v))).view(len(v), len(x), -1)
        return (values - run(self.subject, x, where.at)) * self.outputs.scale * where.sign[:, None]

    def true_length(self) -> tuple[Float[Tensor, " d"], float]:
        """The direction of length 1, and its length, without what is noise in it."""
        mean = (self.both[0].sure + self.both[1].sure) / 2
        if float(mean.norm()) < 1e-12:
            mean = (self.both[0].conditional[0] + self.both[1].conditional[0]) / 2
        length = float(mean.norm())
        return mean / max(length, 1e-30), length

    def steered(self) -> Effect:
        """From one label to the other, everywhere by as much."""
        return self._effect((self.main[0] + self.main[1]) / 2)

    def interchanged(self) -> Effect:
        """Neighbours without and with the feature exchange their coordinates along the direction."""
        parts = []
        for d in self.both:
            v = d.conditional[0]

            def amounts(x: Tensor, v: Tensor = v) -> Tensor:
                c = (x @ v / v.square().sum().clamp(min=1e-30)).view(-1, 2)  # (pairs, off and on)
                return (c[:, 1] - c[:, 0]).repeat_interleave(2)[None]

            parts.append(self.moved(d.conditional[:1], self.where, amounts)[0])
        return self._effect((parts[0] + parts[1]) / 2)

    def awake(self) -> float:
        """As steered, without the directions that hardly vary on data."""
        return float(np.mean([self._mean(self.moved(d.awake, self.where)[0]) for d in self.both]))

    def guard(self) -> tuple[float, float]:
        """By how much the discriminant moves the target less than the direction does, and its standard error.

        Both at the same length without the noise in them; (0, 0) where the discriminant is noise alone.
        """
        a, b = (d.read_out[0] for d in self.both)
        if float(a @ b) <= 0:
            return 0.0, 0.0
        times = self.true_length()[1] / float(a @ b) ** 0.5
        main = abs(float(np.mean([self._mean(part) for part in self.main])))
        moved = [self.moved(times * d.read_out[:1], self.where)[0] for d in self.both]
        drawn = [self.aim.on(part).mean(1) for part in self.drawn]
        guarded = [self.aim.on(self.moved(times * d.read_out[1:], self.few)).mean(1) for d in self.both]
        difference = ((drawn[0] + drawn[1]).abs() - (guarded[0] + guarded[1]).abs()) / 2
        return main - abs(float(np.mean([self._mean(part) for part in moved]))), float(difference.std())

    def squares(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Mean square over places of the target's movement, and of all outputs', each with its standard error.

        The product of two independent estimates has the square as its mean, whatever the noise in each.
        """
        on = [self.aim.on(part) for part in self.main]
        drawn = [self.aim.on(part) for part in self.drawn]
        target = on[0] * on[1]
        every = (self.main[0] * self.main[1]).sum(1) * self.aim.factor**2
        drawn_every = (self.drawn[0] * self.drawn[1]).sum(2).mean(1) * self.aim.factor**2
        return (
            (float(target.mean()), float(np.hypot(self._spread(target), float((drawn[0] * drawn[1]).mean(1).std())))),
            (float(every.mean()), float(np.hypot(self._spread(every), float(drawn_every.std())))),
        )

    def _mean(self, movement: Float[Tensor, "places outputs"]) -> float:
        return float(self.aim.on(movement).mean())

    def _effect(self, movement: Float[Tensor, "places outputs"]) -> Effect:
        on = self.aim.on(movement)
        drawn = sum(self.aim.on(part).mean(1) for part in self.drawn) / 2
        error = float(np.hypot(self._spread(on), float(torch.as_tensor(drawn).std())))
        return Effect(float(on.mean()), error, float(self.aim.off(movement.mean(0))))

    def _spread(self, values: Float[Tensor, " places"]) -> float:
        """Standard error of a mean over places whose documents hang together."""
        left = (values - values.mean()).numpy()
        by_unit = np.bincount(self.where.units, left)
        return float((by_unit**2).sum() ** 0.5 / len(left))
