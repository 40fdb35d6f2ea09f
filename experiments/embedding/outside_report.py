"""What E4's measurements come to: checks, figures, conclusion."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.checks import Check, above, interval, rare
from experiments.embedding.word_sets import SETS
from experiments.figures import Figure, Plot, Scatter, Series
from experiments.registry import Outcome
from toolkit.spectra import marchenko_pastur_quantiles

NOISE = ("entries_shuffled", "columns_shuffled", "gaussian")
"""Nulls of the spectrum."""
RELATIONS = ("space", "capital")
_TOLD = {"space": "'word' less ' word'", "capital": "' Word' less ' word'"}
Found = Sequence[Mapping[str, Tensor]]


def summarise(settings: Any, cells: Sequence[Mapping[str, Any]], found: Found) -> Outcome:
    """Each measurement against its null; the bound on p is shared out among the sets (Bonferroni)."""
    by = {(cell["part"], cell["at"]): one for cell, one in zip(cells, found, strict=True)}
    folds = [one for cell, one in zip(cells, found, strict=True) if cell["part"] == "fold"]
    sets = {name: one for name in SETS if "order" in (one := by["set", name])}
    pairs = {name: one for name in RELATIONS if "observed" in (one := by["pairs", name])}
    checks = (*_fold_checks(folds), *_set_checks(sets), *_pair_checks(pairs))
    metrics = {"left_out_rows": int(folds[0]["left_out"]), "sets": {name: _numbers(one) for name, one in sets.items()}}
    metrics["pairs"] = {name: int(one["pairs"]) for name, one in pairs.items()}
    kept = {f"{name}.{key}": one[key] for name, one in sets.items() for key in ("members", "plane")}
    return Outcome(_conclusion(folds, sets, pairs, metrics), checks, _figures(folds, sets), metrics, kept)


def _of(folds: Found, name: str) -> Tensor:
    return torch.stack([fold[name].double() for fold in folds])


def _fold_checks(folds: Found) -> list[Check]:
    count = _of(folds, "above.observed")
    checks = [
        above(f"eigenvalues above the Marchenko-Pastur edge, less those of {null.replace('_', ' ')}",
              count - _of(folds, f"above.{null}"), 0)
        for null in NOISE
    ]  # fmt: skip
    for key, told in (
        ("kurtosis", "excess kurtosis of cosines"),
        ("tail", "share of pairs in the surrogate's outer .1% of |cosines|"),
        ("nearest", "cosine with the nearest row"),
    ):
        less = _of(folds, f"{key}.observed") - _of(folds, f"{key}.surrogate")
        checks.append(above(f"{told}, less the covariance-matched surrogate's", less, 0))
    return checks


def _set_checks(sets: Mapping[str, Mapping[str, Tensor]]) -> list[Check]:
    bound, checks = 0.05 / len(SETS), []
    for name, one in sets.items():
        for score, told in (("order", "angular order in the principal plane"), ("harmonic", "variance in a circle")):
            for null, how in (("permuted", "labels permuted"), ("random", "random sets")):
                checks.append(rare(f"{name}: {told}, {how}", one[score].item(), one[f"{score}_{null}"], bound))
    return checks


def _pair_checks(pairs: Mapping[str, Mapping[str, Tensor]]) -> list[Check]:
    return [
        above(
            f"{_TOLD[name]}: share that one offset explains, less that of pairs {null}", one["observed"] - one[null], 0
        )
        for name, one in pairs.items()
        for null in ("shuffled", "swapped")
    ]


def _numbers(one: Mapping[str, Tensor]) -> dict[str, float]:
    scores = {key: one[key].item() for key in ("order", "harmonic", "closing")}
    return {**scores, "by_chance": 2 / (len(one["members"]) - 1)}


def _conclusion(folds: Found, sets: Any, pairs: Any, metrics: Mapping[str, Any]) -> str:
    rows, d = int(folds[0]["rows"]), folds[0]["eigenvalues.observed"].numel()
    circles = "; ".join(
        f"{name} {n['order']:.2f} in order, {n['harmonic']:.0%} of variance in a circle ({n['by_chance']:.0%} by "
        f"chance), last to first {n['closing']:.2f} steps"
        for name, n in metrics["sets"].items()
    )
    offsets = ", ".join(
        f"{_TOLD[name]} {one['observed'].mean():.0%} (pairs shuffled {one['shuffled'].mean():.0%})"
        for name, one in pairs.items()
    )
    missing = [name for name in SETS if name not in sets] + [name for name in RELATIONS if name not in pairs]
    return (
        f"Of {d} eigenvalues of {rows:,} rows {interval(_of(folds, 'above.observed')).mean:.3g} stand above the "
        f"Marchenko-Pastur edge. Circles: {circles or 'none to test'} (1 step closes a "
        f"circle, more leave an arc open). One offset explains: {offsets or 'no pairs'}."
        + (f" Too few tokens to test: {', '.join(missing)}." if missing else "")
        + (f" {metrics['left_out_rows']} rows without a token were left out." if metrics["left_out_rows"] else "")
    )


def _figures(folds: Found, sets: Mapping[str, Mapping[str, Tensor]]) -> tuple[Figure, ...]:
    first, rows = folds[0], int(folds[0]["rows"])
    d = first["eigenvalues.observed"].numel()
    ranks, middles = np.arange(1, d + 1), np.linspace(-0.99, 0.99, 100)
    names = ("observed", *NOISE)
    spectrum = [Series(n.replace("_", " "), ranks, first[f"eigenvalues.{n}"]) for n in names]
    if rows >= d:
        spectrum.append(Series("Marchenko-Pastur", ranks, marchenko_pastur_quantiles(rows, d), "dashed"))
    cosines = []
    for name, told in (("observed", "observed"), ("surrogate", "covariance-matched")):
        counts = _of(folds, f"counts.{name}").sum(0)
        density = counts / counts.sum() / 0.02
        cosines.append(Series(told, middles, torch.where(counts > 0, density, torch.nan)))
    panels = (
        Plot("eigenvalues of a part", "rank", "over their mean", tuple(spectrum), log_x=True, log_y=True),
        Plot("cosines between rows", "cosine about the mean row", "density", tuple(cosines), log_y=True),
    )
    caption = (
        "Left: the covariance of one part against its nulls and theory. Right: pairs of rows, all parts; sparse "
        "superposition too has wider tails than a Gaussian."
    )
    circles = tuple(
        Scatter(f"{name}: order {one['order']:.2f}, circle {one['harmonic']:.0%}", one["plane"],
                _names(name, len(one["members"])), written=True, joined=True)
        for name, one in sets.items()
    )  # fmt: skip
    said = "Each set in its two leading principal components, joined in its own order and back to the first."
    drawn = (Figure("circles", said, circles),) if circles else ()
    return (Figure("spectrum-and-cosines", caption, panels), *drawn)


def _names(name: str, count: int) -> list[str]:
    from experiments.embedding.planted import DAYS, MONTHS

    return {"days": list(DAYS), "months": list(MONTHS)}.get(name, [str(digit) for digit in range(count)])
