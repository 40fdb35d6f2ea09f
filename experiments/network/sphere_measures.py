"""What is measured on spheres: divergences along great circles, and how near maxima lie to a dictionary."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from experiments.network.latent_directions import Gaussian, among, as_far_along
from experiments.network.sphere_scenes import Scene
from toolkit.sensitivity import sensitive_directions
from toolkit.sphere_search import great_circles, sphere_maxima, unit_rows

FAMILIES = (
    "decoder, on there",
    "decoder, off there",
    "random, like decoders",
    "random, like activations",
    "random, as far along x as those on",
)
"""Of directions; the last are the third's, turned to lie as far along the activation x as the first's."""
TOP = "most sensitive"
"""The top eigenvector of the Fisher information of each place."""


def along_circles(
    scene: Scene, radii: Sequence[float], *, count: int, angles: int, seed: int
) -> dict[str, Float[Tensor, "..."]]:
    """KL in nats along great circles towards draws of the activations' covariance.

    Args:
        radii: of the spheres, in typical distances.
        count: directions of each family at each place, a circle each.
        angles: points of a circle.

    Returns:
        `kl` (radii, families, count, places, angles), NaN where a place has none of a family; `top`, through TOP,
        (radii, places, angles); `angles`, radians.
    """
    rng = np.random.default_rng([seed, 79])
    units, empty = _directions(scene, count, rng)
    top = sensitive_directions(scene.rest, scene.x, count=1, seed=seed).directions
    through = torch.cat([units.flatten(0, 1), top.transpose(0, 1).to(units)])  # (families * count + 1, places, d)
    towards = Gaussian.of(scene.covariance).units(through.shape[:2], rng).to(through)
    turns = torch.arange(1 - angles // 2, angles // 2 + 1).double() * (2 * np.pi / angles)
    points = great_circles(through, towards, turns).transpose(1, 2)  # (ways, places, angles, d) -> (w, a, p, d)
    found = []
    for radius in radii:
        rows = scene.x + radius * scene.typical * points
        found.append(scene.divergences(rows.flatten(0, 1)).view(points.shape[:3]).mT)  # (ways, places, angles)
    kl = torch.stack(found)
    named = kl[:, :-1].unflatten(1, units.shape[:2]).clone()
    named[:, empty.nonzero()[:, 0], :, empty.nonzero()[:, 1]] = torch.nan
    return {"kl": named, "top": kl[:, -1], "angles": turns}


def _directions(scene: Scene, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Of each family and place, (families, count, places, d); and which places have none, (families, places)."""
    given, shape = scene.dictionary, (count, len(scene.x))
    of_latents = [among(mask, count, rng) for mask in (given.on, ~given.on)]
    drawn = [Gaussian.like(given.rows).units(shape, rng), Gaussian.of(scene.covariance).units(shape, rng)]
    on, off = (given.rows[which] for which, _ in of_latents)
    like, data = (each.to(given.rows) for each in drawn)
    (has_on, has_off), everywhere = (held for _, held in of_latents), torch.ones(shape[1], dtype=torch.bool)
    units = torch.stack([on, off, like, data, as_far_along(scene.x.to(on), on, like)])
    return units, ~torch.stack([has_on, has_off, everywhere, everywhere, has_on])


def maxima(scene: Scene, radii: Sequence[float], *, restarts: int, draws: int, seed: int) -> dict[str, Tensor]:
    """How near the maxima over each sphere lie to the nearest direction of the dictionary.

    Args:
        restarts: climbs a place, from draws of the activations' covariance.
        draws: random dictionaries, and permutations of documents.

    Returns:
        `near` (radii + 1, places), mean over climbs of the largest |cosine| with a direction, the last row for the
        draws that climbs began at; `near_null` (radii + 1, draws), its mean over places for random dictionaries of the
        same size, mean and covariance; `own` and `own_null`, the same among directions on at the place, and at the
        place of another document that changed places with its own, whole; `own_across` and `own_across_null`, these
        with the place's activation projected out of maxima and directions; `highest` and `settled` (radii, places), KL
        in nats, share of climbs that ended.
    """
    rng, rows = np.random.default_rng([seed, 83]), scene.dictionary.rows
    starts = Gaussian.of(scene.covariance).units((restarts, len(scene.x)), rng).to(scene.x)
    found = [sphere_maxima(scene.rest, scene.x, scene.clean, starts, radius=r * scene.typical) for r in radii]
    points = torch.stack([*(each.directions for each in found), starts])  # (radii + 1, restarts, places, d)
    law = Gaussian.like(rows)
    null = [_cosines(points, law.units((len(rows),), rng)).amax(3).mean((1, 2)) for _ in range(draws)]
    cosines = _cosines(points, rows)
    exchanged = [_exchanged(scene.documents, rng) for _ in range(draws)]
    return {
        "near": cosines.amax(3).mean(1),
        "near_null": torch.stack(null, 1),
        **_own("own", cosines, scene, exchanged),
        **_own("own_across", _cosines_across(scene.x, points, rows), scene, exchanged),
        "highest": torch.stack([each.divergence.mean(0) for each in found]),
        "settled": torch.stack([each.is_settled.double().mean(0) for each in found]),
    }


def _own(name: str, cosines: Tensor, scene: Scene, exchanged: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """The nearest among directions on at the place itself, and at others."""
    own = torch.stack([cosines.where(on, 0).amax(3).mean(1) for on in scene.dictionary.on], 2)  # (.., places, whose)
    here = np.arange(len(scene.x))
    null = [own[:, here, whose].mean(1) for whose in exchanged]
    return {name: own[:, here, here], f"{name}_null": torch.stack(null, 1)}


def _exchanged(documents: Int[np.ndarray, " places"], rng: np.random.Generator) -> Int[np.ndarray, " places"]:
    """Places after whole documents have changed places, at random, with others of as many places."""
    names, sizes = np.unique(documents, return_counts=True)
    order = np.arange(len(documents))
    for size in np.unique(sizes):
        alike = np.stack([np.flatnonzero(documents == name) for name in names[sizes == size]])
        order[alike] = rng.permutation(alike)
    return order


def _cosines_across(
    x: Float[Tensor, "places d"], points: Float[Tensor, "*some places d"], rows: Float[Tensor, "latents d"]
) -> Float[Tensor, "*some places latents"]:
    """With each place's activation projected out of points and rows, both brought back to length 1."""
    axis = unit_rows(x)
    left = unit_rows(points - (points * axis).sum(-1, keepdim=True) * axis)
    lengths = (1 - (axis @ rows.to(axis).mT) ** 2).clamp(min=1e-12).sqrt()  # (places, latents), of what is left of rows
    return _cosines(left, rows) / lengths


def _cosines(points: Float[Tensor, "*some d"], rows: Float[Tensor, "latents d"]) -> Float[Tensor, "*some latents"]:
    return (points @ rows.to(points).mT).abs()
