"""What T11 says and shows."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from experiments.figures import Arrows, Figure, Plot, Series

ByRun = Mapping[tuple[int, bool], Mapping[str, Tensor]]
"""What was measured with T samples (0: fresh ones), with weight decay or without."""
MEANS = ("train", "test", "data", "features")
"""What is reported as a mean over instances."""


def largest(D: Tensor) -> Tensor:
    """Mean of the five largest, (I, things) -> (I,)."""
    return D.topk(min(5, D.shape[-1]), dim=-1).values.mean(-1)


def conclusion(by: ByRun, most: int, worst: int, undecayed: Sequence[int]) -> str:
    """D of data points and features at both ends, and the loss between."""
    means = {run: {key: r[key].mean().item() for key in MEANS} for run, r in by.items()}
    few, many = means[5, True], means[most, True]
    plain = ", ".join(f"{means[T, False]['test']:.3g} at T={T}" for T in undecayed)
    return (
        f"At T=5 the data points have D={few['data']:.3f} (a pentagon: .4) and the five largest features "
        f"{few['features']:.3f}; at T={most} it is {many['data']:.3f} and {many['features']:.3f}. The test error, as "
        f"a share of the squared norm, is {few['test']:.3f} and {many['test']:.3f} there, "
        f"{means[worst, True]['test']:.3g} at T={worst} and {means[0, True]['test']:.3f} with fresh samples. Without "
        f"weight decay it is {plain}."
    )


def figures(by: ByRun, samples: Sequence[int], worst: int) -> tuple[Figure, ...]:
    """Losses and dimensionalities against T; directions for few, some and many samples."""
    T = sorted(samples)

    def curve(name: str, key: str) -> Series:
        values = torch.stack([by[t, True][key] for t in T])
        return Series(name, T, values.mean(1), "both", values.amin(1), values.amax(1))

    level = {"fresh samples": by[0, True]["test"].mean().item()}
    loss = (curve("test", "test"), curve("training", "train"))
    D = (curve("data points", "data"), curve("features", "features"))
    curves = (
        Plot("Error", "training samples T", "squared error", loss, log_x=True, levels=level),
        Plot("Five largest dimensionalities", "training samples T", "D", D, log_x=True, levels={"pentagon": 0.4}),
    )
    panels = [
        Arrows(f"T={t}: {name}", _longest(by[t, True][key]))
        for t in (5, worst, max(T))
        for name, key in (("data points", "h"), ("features", "W"))
    ]
    caption = "Test error, and dimensionalities of data points and of features. Bands: the instances kept."
    return (
        Figure("double-descent", caption, curves),
        Figure("directions", "Up to 60 longest hidden vectors of samples, and features, of one model.", tuple(panels)),
    )


def _longest(ends: Tensor) -> Tensor:
    """At most 60 of the columns, (2, things) -> (60, 2)."""
    return ends.T[ends.norm(dim=0).argsort(descending=True)[:60]]
