"""Same-norm perturbations: do outputs move more along a feature's direction than along others of its length?

Each random direction is one vector for all places, as the feature's is: with a direction of its own at every place a
mean over places would vary less over draws than over features, and directions like any other would be rejected.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from controls.asked_each import each, floor_of, joined, noted
from controls.case import Case
from controls.finders import Latents
from controls.natural_moves import PLACES, Ground, Move, named_directions, unit_rows
from controls.outcomes import Outcome
from controls.registry import control
from controls.trials import Place
from toolkit.errors import UserError, require

STATISTIC = "mean log KL of the outputs at its natural length"
"""What the first three measure; the difference from each draw is the mean log ratio over places."""
RADII = (0.1, 0.3, 1.0)
"""Of the spheres that are scanned, in typical distances of a row from the mean."""
SPHERE_PLACES = 8
"""At which they are scanned, the same for all features."""
CIRCLES = 4
"""Great circles through each direction."""
ANGLE = 30.0
"""Degrees to either side at which a circle is compared with its direction."""
RATED = 2048
"""Rows at most on which the frequency of latents is counted."""

Draw = Callable[[Ground, int, np.random.Generator], Tensor]


@control(
    "perturbations.isotropic",
    null="the direction is not special: outputs move as along any direction of that length",
    mind="a weak null: activations fill few directions, and most of space is not read",
)
def isotropic(case: Case) -> list[Outcome]:
    """Against directions of uniform law on the sphere."""

    def draw(ground: Ground, count: int, rng: np.random.Generator) -> Tensor:
        return unit_rows(torch.from_numpy(rng.normal(size=(count, len(ground.values)))))

    return _against(case, "perturbations.isotropic", draw)


@control(
    "perturbations.covariance",
    null="outputs move as along any step of that length towards a draw of N(mean, covariance)",
    mind="a direction with a part in which activations hardly vary leaves the data as no draw does; each draw is one "
    "direction for all places, a step from one activation and not from each place's own",
)
def covariance(case: Case) -> list[Outcome]:
    """Against steps from a real activation towards a draw from the Gaussian of the activations."""

    def draw(ground: Ground, count: int, rng: np.random.Generator) -> Tensor:
        X = ground.subject.activations
        scales = ground.values.clamp(min=0).sqrt()
        z = torch.from_numpy(rng.normal(size=(count, len(scales)))) * scales
        start = X[torch.from_numpy(rng.integers(len(X), size=count))].double()
        return unit_rows(ground.mean + z @ ground.vectors.mT - start)

    return _against(case, "perturbations.covariance", draw)


@control(
    "perturbations.real",
    null="outputs move as along any step of that length from one real activation towards another",
    mind="the strongest of the three; each draw is one direction for all places, a step from one activation to another "
    "and not from each place's own",
)
def real(case: Case) -> list[Outcome]:
    """Against steps from a real activation towards another."""

    def draw(ground: Ground, count: int, rng: np.random.Generator) -> Tensor:
        X = ground.subject.activations
        pairs = torch.from_numpy(rng.integers(len(X), size=(8 * count, 2)))
        steps = X[pairs[:, 1]].double() - X[pairs[:, 0]].double()
        steps = steps[steps.norm(dim=1) > 0][:count]  # rows may repeat, such as those of one token
        require(len(steps) == count, "activations are nearly all the same: no steps from one to another")
        return unit_rows(steps)

    return _against(case, "perturbations.real", draw)


def _against(case: Case, name: str, draw: Draw) -> list[Outcome]:
    """Each feature's direction and drawn ones, at the same places by the same steps."""
    ground = Ground.of(case)

    def ask(move: Move) -> list[Outcome]:
        drawn = draw(ground, case.draws, np.random.default_rng([case.seed, 227, move.number]))
        vectors = torch.cat([move.unit[None], drawn])
        values = ground.log_divergence(vectors, move.amounts, move.where).mean(1).numpy()
        return [Outcome(name, move.feature, STATISTIC, float(values[0]), values[1:], note=floor_of(case.draws))]

    return each([(move.feature, move) for move in ground.moves()], ask, ground.left)


@control(
    "perturbations.latent-swap",
    null="to give a latent's activation to another moves outputs as any step of that length from the covariance does",
    mind="as many latents are on as before; what moves outputs may be the latent left or the latent taken",
)
def latent_swap(case: Case) -> list[Outcome]:
    """Where an SAE's latent is on, its activation goes to one that is off and about as often on."""
    family = next((name for name, finder in case.finders.items() if isinstance(finder, Latents)), None)
    if family is None:
        raise UserError("perturbations.latent-swap swaps activations of an SAE's latents: give --sae")
    finder = case.finders[family]
    assert isinstance(finder, Latents)
    assert finder.which is not None
    latents = dict(zip(named_directions(case, family), finder.which, strict=True))
    ground = Ground.of(case)
    here = _encoded(finder, ground.subject.activations[torch.from_numpy(ground.subject.places)])  # (places, width)
    rates = _rates(finder, ground.subject.activations)

    def ask(feature: str) -> list[Outcome]:
        return [_swapped(ground, finder, feature, latents[feature], here, rates)]

    names = [name for name in ground.subject.names if ground.subject.families.get(name) == family]
    return each([(name, name) for name in names], ask, {})


def _swapped(ground: Ground, finder: Latents, feature: str, latent: int, here: Tensor, rates: Tensor) -> Outcome:
    at, partner = _partner(feature, latent, here, rates)
    rng = np.random.default_rng([ground.case.seed, 229, list(ground.subject.names).index(feature)])
    at = rng.permutation(at)[:PLACES]
    where = Place(torch.from_numpy(at), torch.ones(len(at)).double(), np.arange(len(at)))
    rows = finder.sae.W_dec[0].detach().double()
    step = rows[partner] - rows[latent]
    amounts = here[where.at, latent].double()[None] * step.norm()
    vectors = torch.cat([unit_rows(step[None]), ground.drawn(ground.case.draws, rng)])
    values = ground.log_divergence(vectors, amounts, where).mean(1).numpy()
    note = f"with latent {partner}, on in {rates[partner]:.1%} of rows against {rates[latent]:.1%}"
    note = joined(note, floor_of(ground.case.draws))
    what = "mean log KL of the outputs when latents are swapped"
    return Outcome("perturbations.latent-swap", feature, what, float(values[0]), values[1:], note=note)


def _partner(feature: str, latent: int, here: Tensor, rates: Tensor) -> tuple[Int[np.ndarray, " places"], int]:
    """The latent about as often on that is off at most of the places where this one is on, and those places."""
    on = (here[:, latent] > 0).nonzero()[:, 0]
    order = ((rates + 1e-4).log() - (rates[latent] + 1e-4).log()).abs().argsort(stable=True)
    need = max(2, len(on) // 2)
    is_off = here[on] <= 0  # (places where it is on, width)
    partner = next((int(g) for g in order if g != latent and rates[g] > 0 and int(is_off[:, g].sum()) >= need), None)
    require(
        partner is not None and len(on) >= 2,
        f"latent {feature!r} is not on, with one as frequent off, at two places or more: take more rows",
    )
    assert partner is not None
    return on[is_off[:, partner]].numpy(), partner


@torch.no_grad()
def _encoded(finder: Latents, rows: Float[Tensor, "some d"]) -> Float[Tensor, "some width"]:
    return torch.cat([finder.sae.encode(some[None].float())[0] for some in rows.split(PLACES * 32)])


def _rates(finder: Latents, rows: Float[Tensor, "rows d"]) -> Float[Tensor, " width"]:
    """Share of rows where each latent is on."""
    some = rows[:: max(1, len(rows) // RATED)]
    counts = [(_encoded(finder, block) > 0).sum(0) for block in some.split(PLACES * 32)]
    return torch.stack(counts).sum(0) / len(some)


@control(
    "perturbations.sphere",
    null="on a sphere around an activation, outputs peak at the direction no more than at random ones",
    mind="far out the network is off its distribution; random directions come from the covariance",
)
def sphere(case: Case) -> list[Outcome]:
    """Along great circles from random directions through the feature's: is the divergence a local maximum there?"""
    ground = Ground.of(case)
    moves, where = ground.moves(), ground.anywhere(SPHERE_PLACES)
    rng = np.random.default_rng([case.seed, 233])
    units = torch.cat([torch.stack([move.unit for move in moves]), ground.drawn(case.draws, rng)])
    points = _circles(units, ground.drawn(CIRCLES, rng))
    found = []
    for share in RADII:
        amounts = share * ground.distance * where.sign[None]
        values = ground.log_divergence(points.flatten(0, 1), amounts, where).exp().mean(1).view(points.shape[:2])
        peaks = (values[:, 0] / values[:, 1:].mean(1)).log().numpy()  # a log a point would be ruled by those near 0
        found += [_peak(move, share, float(peaks[i]), peaks[len(moves) :]) for i, move in enumerate(moves)]
    return noted(found, ground.left)


def _peak(move: Move, share: float, observed: float, null: Float[np.ndarray, " draws"]) -> Outcome:
    what = f"log ratio of the mean KL at the direction and {ANGLE:.0f} degrees from it, at radius {share:g}"
    note = joined("radius in typical distances from the mean", floor_of(len(null)))
    return Outcome("perturbations.sphere", move.feature, what, observed, null, note=note)


def _circles(units: Float[Tensor, "some d"], towards: Float[Tensor, "circles d"]) -> Float[Tensor, "some points d"]:
    """Each direction, then ANGLE to either side of it on the great circle towards each of some others."""
    across = towards - (units @ towards.mT)[:, :, None] * units[:, None]  # (some, circles, d)
    across = across / across.norm(dim=2, keepdim=True).clamp(min=1e-30)
    angle = np.deg2rad(ANGLE)
    turned = np.sin(angle) * torch.cat([across, -across], 1) + np.cos(angle) * units[:, None]
    return torch.cat([units[:, None], turned], 1)
