"""Numbers of N5, from what was measured on spheres: peaks, spikes and nearness, by place, document and draw."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from experiments.network.by_document import means
from toolkit.sphere_search import spikes

ON, OFF, LIKE, DATA, MATCHED = range(5)
"""Families, by place in FAMILIES."""
ASIDE = np.pi / 6
"""Radians to either side at which a circle is compared with its direction."""
NEAR = np.pi / 12
"""Within which points count as the spike itself."""
FLOOR = 1e-9
"""Nats below which a divergence is rounding."""

Group = Sequence[Mapping[str, Tensor]]
"""Cells of one network, a hook each; places are the same at all of them."""


def peaks(kl: Float[np.ndarray, "*some angles"], angles: Float[np.ndarray, " angles"]) -> Float[np.ndarray, " *some"]:
    """Log of the KL at a direction over its mean at ASIDE to either side on a great circle through it."""
    aside = kl[..., np.isclose(np.abs(angles), ASIDE)].mean(-1)
    at = kl[..., np.isclose(angles, 0)][..., 0]
    return np.asarray(np.log(np.maximum(at, FLOOR)) - np.log(np.maximum(aside, FLOOR)))


def spiked(kl: Float[np.ndarray, "*some angles"], angles: Float[np.ndarray, " angles"]) -> Float[np.ndarray, " *some"]:
    """How far the KL at a direction stands above the smooth circle, over the circle's mean."""
    return spikes(kl, angles, within=NEAR)


def per_place(group: Group, measure: Any) -> Float[np.ndarray, "families radii places"]:
    """Mean over directions and hooks; NaN where a place has none of a family."""
    each = [measure(one["kl"].double().numpy(), one["angles"].double().numpy()).mean(2) for one in group]
    return np.moveaxis(np.mean(each, 0), 0, 1)


def documents(group: Group, values: Float[np.ndarray, " places"]) -> Float[np.ndarray, " documents"]:
    """The mean of each document's places; a document without a value is left out."""
    return means(values, group[0]["documents"].numpy())


def more(group: Group, measure: Any, family: int, other: int = LIKE) -> Float[np.ndarray, " documents"]:
    """What a family has more than another at the same place, mean over radii; a number a document."""
    values = per_place(group, measure)
    return documents(group, (values[family] - values[other]).mean(0))


def aligned(group: Group, name: str) -> tuple[float, Float[np.ndarray, " draws"]]:
    """`near`, `own` or `own_across`: mean |cosine| over places, radii and hooks, and the same of each draw."""
    observed = np.mean([one[name][:-1].double().mean() for one in group])
    return float(observed), np.mean([one[f"{name}_null"][:-1].double().mean(0).numpy() for one in group], 0)


def top_peaks(group: Group) -> Float[np.ndarray, " documents"]:
    """Peaks at TOP on the smallest sphere, by document."""
    each = [peaks(one["top"][0].double().numpy(), one["angles"].double().numpy()) for one in group]
    return documents(group, np.mean(each, 0))


def nearer_than_draws(group: Group) -> Float[np.ndarray, " documents"]:
    """What of the maxima's nearness to the dictionary, random ones' subtracted, draws no network chose do not have."""
    beyond = [one["near"].double() - one["near_null"].double().mean(1)[:, None] for one in group]
    return documents(group, np.mean([(each[:-1].mean(0) - each[-1]).numpy() for each in beyond], 0))


def drawn_nearness(group: Group) -> dict[str, float]:
    """The same alignment of what climbs began at, random draws that no network was asked about."""
    observed = float(np.mean([one["near"][-1].double().mean() for one in group]))
    null = np.mean([one["near_null"][-1].double().numpy() for one in group], 0)
    return {"observed": observed, "null": float(null.mean()), "p": p_of(observed, null)}


def p_of(observed: float, null: Float[np.ndarray, " draws"]) -> float:
    """Share of draws that reach what is observed, itself among them."""
    return float((1 + (null >= observed - 1e-12).sum()) / (1 + len(null)))


MEASURES = {"peak (log ratio)": peaks, "spike (share of the circle's mean)": spiked}
"""Of a circle, by name."""
