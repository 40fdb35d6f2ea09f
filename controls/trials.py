"""One feature's directions, tried at places whose documents they were not fitted on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls.directions import Directions
from controls.outputs import Outputs, Target, run
from controls.steering_curve import SIZES, Curve
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


@dataclass(frozen=True)
class Drawn:
    """What resampled directions do, two estimates side by side."""

    on: tuple[Float[Tensor, "draws places"], Float[Tensor, "draws places"]]
    """Movements of the target."""
    product: Float[Tensor, "draws places"]
    """Of the movements of all outputs, one estimate times the other."""

    @property
    def mean(self) -> Float[Tensor, " draws"]:
        """Movement of the target, over places and both estimates."""
        return (self.on[0].mean(1) + self.on[1].mean(1)) / 2


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
        self.drawn = self._drawn(both[0].conditional[1:], both[1].conditional[1:])

    @torch.no_grad()
    def moved(
        self,
        v: Float[Tensor, "some d"],
        where: Place,
        amounts: Callable[[Tensor], Tensor] | None = None,
    ) -> Float[Tensor, "some places outputs"]:
        """Movements of the outputs in their units, towards the feature, by each vector at each place."""
        x = self.subject.activations[torch.from_numpy(self.subject.places)[where.at]]
        size = torch.ones(len(v), len(x), dtype=torch.float64) if amounts is None else amounts(x.double())
        step = (size * where.sign)[:, :, None] * v[:, None]  # (some, places, d)
        changed = (x + step).flatten(0, 1)  # (some * places, d)
        values = run(self.subject, changed, where.at.repeat(len(v))).view(len(v), len(x), -1)
        values *= self.outputs.scale
        values -= self.outputs.clean[where.at] + self.outputs.mean
        return values.mul_(where.sign[:, None])

    def in_parts(self, v: Float[Tensor, "some d"], where: Place) -> Iterator[Float[Tensor, "few places outputs"]]:
        """The same for many vectors, as many at a time as memory has room for."""
        for some in v.split(max(1, self.outputs.block // len(where.at))):
            yield self.moved(some, where)

    def _drawn(self, a: Float[Tensor, "draws d"], b: Float[Tensor, "draws d"]) -> Drawn:
        on, product = (list[Tensor](), list[Tensor]()), list[Tensor]()
        for first, second in zip(self.in_parts(a, self.few), self.in_parts(b, self.few), strict=True):
            on[0].append(self.aim.on(first))
            on[1].append(self.aim.on(second))
            product.append((first * second).sum(2))
        return Drawn((torch.cat(on[0]), torch.cat(on[1])), torch.cat(product))

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

        Both at the same length without the noise in them; (0, 0) where the discriminant is noise alone, or where a
        movement of that length along it leaves the range that the activations span: it has nothing to say then.
        """
        a, b = (d.read_out[0] for d in self.both)
        if float(a @ b) <= 0 or self.true_length()[1] > self._span((a + b) / 2):
            return 0.0, 0.0
        times = self.true_length()[1] / float(a @ b) ** 0.5
        main = abs(float(np.mean([self._mean(part) for part in self.main])))
        moved = [self.moved(times * d.read_out[:1], self.where)[0] for d in self.both]
        guarded = [
            torch.cat([self.aim.on(part).mean(1) for part in self.in_parts(times * d.read_out[1:], self.few)])
            for d in self.both
        ]
        difference = self.drawn.mean.abs() - (guarded[0] + guarded[1]).abs() / 2
        return main - abs(float(np.mean([self._mean(part) for part in moved]))), float(difference.std())

    def _span(self, v: Float[Tensor, " d"]) -> float:
        """Between the largest and the smallest coordinate of the activations along a direction."""
        along = self.subject.activations @ (v / v.norm().clamp(min=1e-30)).to(self.subject.activations)
        return float(along.max() - along.min())

    def squares(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Mean square over places of the target's movement, and of all outputs', each with its standard error.

        The product of two independent estimates has the square as its mean, whatever the noise in each.
        """
        on, unit = [self.aim.on(part) for part in self.main], (self.aim.factor / self.aim.step) ** 2
        target, drawn = on[0] * on[1], (self.drawn.on[0] * self.drawn.on[1]).mean(1)
        every = (self.main[0] * self.main[1]).sum(1) * unit
        drawn_every = self.drawn.product.mean(1) * unit
        return (
            (float(target.mean()), float(np.hypot(self._spread(target), float(drawn.std())))),
            (float(every.mean()), float(np.hypot(self._spread(every), float(drawn_every.std())))),
        )

    def curve(self) -> Curve:
        """Steering by parts and multiples of the direction's own length, at few places."""
        on, off = np.zeros(len(SIZES)), np.zeros(len(SIZES))
        for d in self.both:
            sizes = torch.tensor(SIZES, dtype=torch.float64)[:, None] * d.conditional[:1]  # (sizes, d)
            means = torch.cat([part.mean(1) for part in self.in_parts(sizes, self.few)])
            on += self.aim.on(means).numpy() / 2
            off += self.aim.off(means).numpy() / 2
        return Curve(SIZES, tuple(on.tolist()), tuple(off.tolist()))

    def _mean(self, movement: Float[Tensor, "places outputs"]) -> float:
        return float(self.aim.on(movement).mean())

    def _effect(self, movement: Float[Tensor, "places outputs"]) -> Effect:
        on = self.aim.on(movement)
        error = float(np.hypot(self._spread(on), float(self.drawn.mean.std())))
        return Effect(float(on.mean()), error, float(self.aim.off(movement.mean(0))))

    def _spread(self, values: Float[Tensor, " places"]) -> float:
        """Standard error of a mean over places whose documents hang together."""
        left = (values - values.mean()).numpy()
        by_unit = np.bincount(self.where.units, left)
        return float((by_unit**2).sum() ** 0.5 / len(left))
