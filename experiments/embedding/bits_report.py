"""What E3's measurements come to: FVU at equal bits, what is stored, figures, conclusion."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.checks import Check, above, at_most, interval
from experiments.figures import Figure, Plot, Series
from experiments.registry import Outcome

METHODS = {
    "sae": "SAE, its own encoder", "learned": "learned dictionary, pursuit", "subset": "row subset, pursuit",
}  # fmt: skip
Found = Sequence[Mapping[str, Tensor]]
Curves = Mapping[tuple[str, float, int], Found]
"""What each replicate yielded, for each way to code, width and k of training."""


def summarise(settings: Any, cells: Sequence[Mapping[str, Any]], found: Found) -> Outcome:
    """Each way to code at its best width for each budget."""
    curves: dict[tuple[str, float, int], list[Mapping[str, Tensor]]] = {}
    stored = []
    for cell, one in zip(cells, found, strict=True):
        if cell["part"] == "stored":
            stored.append(one)
        else:
            curves.setdefault((cell["part"], cell["overcomplete"], cell["k"]), []).append(one)
    best = {method: best_at_budgets(settings, curves, method) for method in METHODS}
    kept = {name: torch.stack([one[name] for one in stored]) for name in stored[0]}
    lost = max((one["fvu"] - one["exact"]).max().item() for each in curves.values() for one in each)
    metrics = {"at_budgets": {m: values.tolist() for m, values in best.items()}, "largest_cost_of_rounding": lost}
    metrics["stored"] = {name: values.tolist() for name, values in kept.items()}
    checks = (*_equal(settings, best), *_storing(kept))
    told = _conclusion(settings, best, kept, lost)
    return Outcome(told, checks, _figures(settings, curves), metrics, table=_table(settings, best, kept))


def best_at_budgets(settings: Any, curves: Curves, method: str) -> Tensor:
    """(replicates, budgets): the least FVU over widths and ks of training, between two ks in proportion.

    In proportion is what coding some tokens with the one k and the rest with the other gives.
    """
    found = [
        [np.interp(settings.budgets, one["bits"], one["fvu"], left=np.nan, right=np.nan) for one in each]
        for (name, _, _), each in curves.items()
        if name == method
    ]
    return torch.from_numpy(np.nanmin(np.array(found), 0))  # (curves, replicates, budgets) -> (replicates, budgets)


def _equal(settings: Any, best: Mapping[str, Tensor]) -> list[Check]:
    return [
        above(f"{budget:g} bits a token: FVU of {METHODS[other]}, less the learned dictionary's",
              (best[other] - best["learned"])[:, at], 0)
        for at, budget in enumerate(settings.budgets)
        for other in ("sae", "subset")
    ]  # fmt: skip


def _storing(kept: Mapping[str, Tensor]) -> list[Check]:
    return [
        at_most("an atom a token, k=1: FVU of stored tokens, dictionary", kept["stored.learned"], 0.01),
        at_most("an atom a token, k=1: FVU of stored tokens, SAE", kept["stored.sae"], 0.2),
        above("the same dictionary: FVU of other tokens", kept["others.learned"], 0.5),
        above("the same SAE: FVU of other tokens", kept["others.sae"], 0.5),
    ]


def _shown(values: Tensor) -> str:
    found = interval(values)
    half = "" if found.high != found.high else f" ± {found.high - found.mean:.4f}"
    return f"{found.mean:.4f}{half}"


def _table(settings: Any, best: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> str:
    lines = [f"{'FVU of held-out tokens at equal bits':38}" + "".join(f"{f'{b:g} bits':>18}" for b in settings.budgets)]
    lines += [f"{METHODS[m]:38}" + "".join(f"{_shown(c):>18}" for c in v.T) for m, v in best.items()]
    lines += [f"{'an atom a token, k=1: FVU':38}{'stored tokens':>18}{'others':>18}"]
    for name in ("sae", "learned"):
        lines.append(
            f"{METHODS[name]:38}" + "".join(f"{_shown(kept[f'{p}.{name}']):>18}" for p in ("stored", "others"))
        )
    return "\n".join(lines)


def _conclusion(settings: Any, best: Mapping[str, Tensor], kept: Mapping[str, Tensor], lost: float) -> str:
    each = "; ".join(
        f"{budget:g} bits " + ", ".join(f"{METHODS[m]} {v[:, at].mean():.3f}" for m, v in best.items())
        for at, budget in enumerate(settings.budgets)
    )
    return (
        f"FVU at equal bits a token: {each}. Rounding to {settings.bits} bits costs at most {lost:.2g} of it. "
        f"With an atom for each of {settings.stored:,} tokens an SAE leaves {kept['stored.sae'].mean():.3f} of them "
        f"and {kept['others.sae'].mean():.2f} of others, a dictionary {kept['stored.learned'].mean():.3f} and "
        f"{kept['others.learned'].mean():.2f}: stored rows are no code for new ones."
    )


def _figures(settings: Any, curves: Curves) -> tuple[Figure, ...]:
    panels = []
    for c in settings.overcomplete:
        series = []
        for (method, overcomplete, k), each in curves.items():
            if overcomplete == c:
                name = METHODS[method] + (f", trained at k={k}" if k else "")
                bits = torch.stack([one["bits"] for one in each]).mean(0)
                spans = [interval(column) for column in torch.stack([one["fvu"] for one in each]).T]
                low, high = ([getattr(s, end) for s in spans] for end in ("low", "high"))
                series.append(Series(name, bits, [s.mean for s in spans], "both", low, high))
        panels.append(Plot(f"n = {c:g} d", "bits a token", "FVU, held out", tuple(series), log_y=True))
    caption = "The error of held-out tokens against what their codes and their share of the dictionary cost."
    return (Figure("fvu-against-bits", caption, tuple(panels)),)
