"""What E5's measurements come to: errors over pretraining, alone and relative to what the spectrum explains."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from experiments.checks import Check, Interval, above, interval, within
from experiments.figures import Figure, Plot, Series
from experiments.registry import Outcome

SOURCES = ("observed", "covariance_matched", "columns_shuffled")
LABELS = {"observed": "embedding", "covariance_matched": "same covariance, Gaussian",
          "columns_shuffled": "columns shuffled", "components": "principal components"}  # fmt: skip
Found = Sequence[Mapping[str, Tensor]]
Curves = Mapping[str, Tensor]
"""(checkpoints, replicates) of held-out FVU, by what was coded."""


def summarise(settings: Any, cells: Sequence[Mapping[str, Any]], found: Found) -> Outcome:
    """The error at each checkpoint and its share of the null's; tokens alike for the checks, by frequency beside."""
    weights = next(one["weights"] for one in found if "weights" in one).double()
    coded = [(c["step"], one) for c, one in zip(cells, found, strict=True) if "step" in c]
    steps = sorted({step for step, _ in coded})
    alike, weighted = (fvus(steps, coded, w) for w in (torch.ones_like(weights), weights))
    ratio, by_frequency = relative(alike), relative(weighted)
    metrics = {"steps": steps, "fvu": {name: v.tolist() for name, v in alike.items()}, "relative": ratio.tolist()}
    metrics["fvu_weighted"] = {name: v.tolist() for name, v in weighted.items()}
    metrics["relative_weighted"] = by_frequency.tolist()
    figures = (_figure(steps, alike, weighted, ratio, by_frequency),)
    told = _conclusion(steps, alike, ratio, by_frequency)
    return Outcome(told, checks(steps, alike), figures, metrics, table=_table(steps, alike, ratio, by_frequency))


def fvus(steps: Sequence[int], coded: Sequence[tuple[int, Mapping[str, Tensor]]], weights: Tensor) -> dict[str, Tensor]:
    """Squared error over squared distance from the training mean, over the held-out tokens, weighted."""
    found = {}
    for name in LABELS:
        each = [[_fvu(one, name, weights) for at, one in coded if at == step] for step in steps]
        found[name] = torch.tensor(each, dtype=torch.float64)
    return found


def _fvu(one: Mapping[str, Tensor], name: str, weights: Tensor) -> float:
    w = weights[one["tokens"]]
    return (w @ one[f"errors.{name}"].double() / (w @ one[f"squares.{name}"].double())).item()


def relative(curves: Curves) -> Tensor:
    """The embedding's error over that of Gaussian rows of its covariance: what its spectrum does not explain."""
    return curves["observed"] / curves["covariance_matched"]


def checks(steps: Sequence[int], curves: Curves) -> tuple[Check, ...]:
    """First against last checkpoint and the order between, split by split."""
    ours, null, ratio = curves["observed"], curves["covariance_matched"], relative(curves)
    falls = [-spearmanr(steps, each).statistic if len(set(each)) > 1 else 0.0 for each in ratio.T.tolist()]
    return (
        within("first checkpoint: FVU of the same covariance, less the embedding's", null[0] - ours[0], -0.02, 0.02),
        above("FVU at the first checkpoint, less that at the last", ours[0] - ours[-1], 0),
        above("last checkpoint: FVU of the same covariance, less the embedding's", null[-1] - ours[-1], 0),
        above("last checkpoint: FVU of columns shuffled, less the embedding's", (curves["columns_shuffled"] - ours)[-1],
              0),
        above("last checkpoint: FVU of principal components, less the embedding's", (curves["components"] - ours)[-1],
              0),
        above("FVU over the same covariance's: first checkpoint, less the last", ratio[0] - ratio[-1], 0),
        above("the same: how far it falls in order (minus the rank correlation with steps)", falls, 0),
    )  # fmt: skip


def _shown(values: Tensor) -> str:
    found = interval(values)
    half = "" if np.isnan(found.high) else f" ± {found.high - found.mean:.4f}"
    return f"{found.mean:.4f}{half}"


def _table(steps: Sequence[int], curves: Curves, ratio: Tensor, weighted: Tensor) -> str:
    shown = {label: curves[name] for name, label in LABELS.items()}
    shown |= {"over same covariance": ratio, "  by frequency": weighted}
    lines = [f"{'step':>9}" + "".join(f"{label:>27}" for label in shown)]
    for at, step in enumerate(steps):
        lines.append(f"{step:9,}" + "".join(f"{_shown(values[at]):>27}" for values in shown.values()))
    return "\n".join(lines)


def _conclusion(steps: Sequence[int], curves: Curves, ratio: Tensor, weighted: Tensor) -> str:
    ours, null = (curves[name].mean(1) for name in ("observed", "covariance_matched"))
    change = interval(ratio[-1] - ratio[0])
    lowest, least = int(ratio.mean(1).argmin()), int(ours.argmin())
    answer = "yes" if change.high < 0 else "no" if change.low > 0 else "no difference is seen"
    return (
        f"From step {steps[0]:,} to {steps[-1]:,} the error of held-out rows goes from {ours[0]:.3f} to "
        f"{ours[-1]:.3f} (lowest {ours[least]:.3f} at step {steps[least]:,}), that of Gaussian rows of the same "
        f"covariance from {null[0]:.3f} to {null[-1]:.3f}. Relative to it the error goes from {ratio[0].mean():.3f} "
        f"to {ratio[-1].mean():.3f} (change {_span(change)}), lowest {ratio[lowest].mean():.3f} at step "
        f"{steps[lowest]:,}; by frequency from {weighted[0].mean():.3f} to {weighted[-1].mean():.3f}. Less at the "
        f"last step than at the first, by more than the spectrum explains: {answer}."
    )


def _span(found: Interval) -> str:
    return f"{found.mean:+.3f}" + ("" if np.isnan(found.low) else f" [{found.low:+.3f}, {found.high:+.3f}]")


def _figure(steps: Sequence[int], alike: Curves, weighted: Curves, ratio: Tensor, by_frequency: Tensor) -> Figure:
    at = [step + 1 for step in steps]  # a logarithmic axis has no 0
    panels = [
        Plot(f"Error, {how}", "step + 1", "FVU, held out",
             tuple(_series(LABELS[name], at, values) for name, values in curves.items()), log_x=True)
        for curves, how in ((alike, "tokens alike"), (weighted, "weighted by frequency"))
    ]  # fmt: skip
    shares = (_series("tokens alike", at, ratio), _series("by frequency", at, by_frequency))
    panels.append(Plot("Over the same covariance's", "step + 1", "ratio of FVUs", shares, log_x=True))
    caption = (
        "Sparse coding of held-out rows over pretraining, beside nulls of each checkpoint; bands are 95% intervals."
    )
    return Figure("error-over-pretraining", caption, tuple(panels))


def _series(name: str, at: Sequence[float], values: Tensor) -> Series:
    spans = [interval(each) for each in values]
    low, high = ([getattr(s, end) for s in spans] for end in ("low", "high"))
    return Series(name, at, [s.mean for s in spans], "both", low, high)
