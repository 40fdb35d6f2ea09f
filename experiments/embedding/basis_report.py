"""What E1's measurements come to: one table, checks, figures, conclusion."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.checks import Check, above, interval, share
from experiments.embedding.basis_figures import LABELS, Fvus, error_figure, path_figure
from experiments.registry import Outcome
from toolkit.corpora import effective_size

_BARS = {"covariance_matched": 0.02, "columns_shuffled": 0.02, "step_zero": 0.05, "subset": 0.01, "gaussian": 0.05,
         "components": 0.05, "sae": 0.0}  # fmt: skip
"""How much more of held-out rows each should leave at k than the dictionary learned on the embedding does."""
Found = Sequence[Mapping[str, Tensor]]


def summarise(settings: Any, cells: Sequence[Mapping[str, Any]], found: Found) -> Outcome:
    """The error at each k, the embedding against its nulls and the learned dictionary against others."""
    weights = next(one["weights"] for one in found if "weights" in one)
    fvus = held_out_fvus(found, weights)
    effective = effective_size(weights)
    lasso = [one for one in found if "lasso.gaps" in one]
    metrics: dict[str, Any] = {"effective_tokens": effective, "weight_coded": [_share(weights, one) for one in lasso]}
    metrics["fvu"] = {("weighted " if w else "") + name: value.tolist() for (name, w), value in fvus.items()}
    metrics["lasso"] = _lasso(settings, lasso)
    told = _conclusion(settings, fvus, metrics["lasso"], effective)
    figures = (error_figure(settings, fvus), path_figure(settings, metrics["lasso"]))
    checks = _checks(settings, fvus, lasso)
    return Outcome(told, checks, figures, metrics, {"weights": weights}, table=_table(settings, fvus))


def _share(weights: Tensor, one: Mapping[str, Tensor]) -> float:
    return (weights[one["tokens"]].sum() / weights.sum()).item()


def held_out_fvus(found: Found, weights: Tensor) -> dict[tuple[str, bool], Tensor]:
    """Squared error over squared distance from the training mean, over the held-out tokens of each replicate."""
    values: dict[tuple[str, bool], list[Tensor]] = {}
    for one in found:
        for name in LABELS:
            if (errors := one.get(f"errors.{name}")) is not None:
                for weighted in (False, True):
                    w = weights[one["tokens"]].double() if weighted else torch.ones(len(errors), dtype=torch.float64)
                    values.setdefault((name, weighted), []).append(w @ errors.double() / (w @ one["squares"].double()))
    return {key: torch.stack(each) for key, each in values.items()}


def _checks(settings: Any, fvus: Fvus, lasso: Found) -> tuple[Check, ...]:
    at = settings.ks.index(settings.k)
    ours = fvus["observed", False][:, at]
    checks = [
        above(f"k={settings.k}: FVU of {LABELS[name].strip()}, less the embedding's with its learned dictionary",
              fvus[name, False][:, at] - ours, bar)
        for name, bar in _BARS.items()
    ]  # fmt: skip
    gaps = torch.cat([one["lasso.gaps"].flatten() for one in lasso])
    return (*checks, share("lasso: relative duality gap <= 1e-4", gaps <= 1e-4, 1.0))


def _table(settings: Any, fvus: Fvus) -> str:
    at = settings.ks.index(settings.k)
    lines = []
    for weighted, title in ((False, "FVU of held-out tokens, all alike"), (True, "weighted by token frequency")):
        lines.append(f"{title:46}" + "".join(f"{f'k={k}':>8}" for k in settings.ks) + f"{f'± at k={settings.k}':>12}")
        for name, label in LABELS.items():
            values = fvus[name, weighted]
            half = interval(values[:, at]).high - interval(values[:, at]).mean
            shown = [f"{v:8.4f}" if v == v else f"{'':8}" for v in values.mean(0).tolist()]
            lines.append(f"{label:46}" + "".join(shown) + (f"{half:12.4f}" if half == half else f"{'':12}"))
    return "\n".join(line.rstrip() for line in lines)


def _lasso(settings: Any, lasso: Found) -> dict[str, Any]:
    joined = {key: torch.cat([one[key] for one in lasso]).double() for key in lasso[0] if key[:5] in ("lasso", "omp.f")}
    return {
        "alphas": list(settings.alphas),
        "fvu": (joined["lasso.errors"].sum(0) / joined["lasso.squares"].sum()).tolist(),
        "atoms": joined["lasso.active"].mean(0).tolist(),
        "largest_gap": joined["lasso.gaps"].max().item(),
        "fuchs": (joined["lasso.fuchs"] < 1).double().mean(0).tolist(),
        "fuchs_of_pursuit": (joined["omp.fuchs"] < 1).double().mean(0).tolist(),
    }


def _conclusion(settings: Any, fvus: Fvus, lasso: Mapping[str, Any], effective: float) -> str:
    ks, means = settings.ks, {name: fvus[name, False].mean(0) for name in ("observed", "covariance_matched", "decoder")}
    slopes = [np.polyfit(np.log(ks), np.log(means[name]), 1)[0] for name in ("observed", "covariance_matched")]
    last = np.log(means["observed"][-1] / means["observed"][-2]) / np.log(ks[-1] / ks[-2])
    at, weighted = ks.index(settings.k), fvus["observed", True][:, -1].mean()
    shares = ", ".join(f"{s:.0%} at k={k}" for s, k in zip(lasso["fuchs_of_pursuit"], ks, strict=True))
    return (
        f"At k={ks[-1]} the learned basis leaves {means['observed'][-1]:.3f} of held-out rows, {weighted:.3f} weighted "
        f"by frequency (worth {effective:.0f} equal tokens). As a power of k the error falls with exponent "
        f"{slopes[0]:.2f} ({slopes[1]:.2f} for covariance-matched rows), from k={ks[-2]} to {ks[-1]} with {last:.2f}. "
        f"At k={settings.k} pursuit leaves {means['observed'][at]:.3f} with the learned atoms and "
        f"{means['decoder'][at]:.3f} with the SAE's. Along the lasso's path the error falls to {lasso['fvu'][-1]:.3f} "
        f"at {lasso['atoms'][-1]:.0f} atoms a row (largest duality gap {lasso['largest_gap']:.1g}). Fuchs' condition "
        f"holds for pursuit's codes in {shares} of rows."
    )
