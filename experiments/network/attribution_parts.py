"""What N8's activations are made of, latents or probes, and how the parts of a place are laid beside each other."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from experiments.network.ground import Ground
from toolkit.attribution import Parts, latent_parts, probe_parts
from toolkit.errors import require
from toolkit.probes import LinearProbe


def parts_of(here: Ground, labels: tuple[str, ...]) -> list[Parts]:
    """Latents of the SAE, from zero and from the mean activation; or probes of labels, from the mean activation.

    Raises:
        UserError: a label that no row, or every row, to learn from has; what the SAE does not bear.
    """
    if labels:
        return [probe_parts(probes(here, labels), here.x, here.mean)]
    return [latent_parts(here.sae, here.x, rows=rows) for rows in (None, here.learn)]


def probes(here: Ground, labels: tuple[str, ...]) -> Float[Tensor, "labels d"]:
    """Unit directions of logistic probes, their penalties chosen by document."""
    found = []
    for name in labels:
        y = here.text.labels(name)
        told = f"{y.sum()} of {len(y)} rows to learn from have {name}"
        require(0 < y.sum() < len(y), f"{told}: a probe needs some with and some without")
        probe = LinearProbe().fit(here.learn, y, groups=here.learned)
        found.append(torch.as_tensor(probe.directions_[0]).to(here.learn))
    rows = torch.stack(found)
    return rows / rows.norm(dim=1, keepdim=True)


def elsewhere(gradient: Tensor | None, parts: Parts) -> Float[Tensor, "places features"]:
    """What the latents would get by the mean gradient, of the same token, at a place half of all places away."""
    assert gradient is not None
    return parts.moves * (gradient.roll(len(gradient) // 2, 0) @ parts.directions.mT)


def active(values: Float[Tensor, "places features"], on: Bool[Tensor, "places features"]) -> Float[Tensor, "places k"]:
    """The values of each place's parts that are on, side by side; NaN where it has fewer than others."""
    order = on.int().argsort(dim=1, descending=True, stable=True)[:, : int(on.sum(1).max())]
    return values.gather(1, order).where(on.gather(1, order), torch.nan)


def permuted(values: Float[Tensor, "places k"], generator: torch.Generator) -> Float[Tensor, "places k"]:
    """The values of each place dealt anew among its latents."""
    noise = torch.rand(values.shape, generator=generator).where(values.isfinite(), torch.inf)
    return values.gather(1, noise.argsort(1))
