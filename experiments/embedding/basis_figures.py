"""What E1 shows: the error against sparsity, and the lasso's path."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from experiments.checks import interval
from experiments.figures import Figure, Plot, Series

NULLS = ("covariance_matched", "columns_shuffled", "step_zero")
LABELS = {
    "observed": "embedding, learned dictionary", "weighted": "  learned with token frequencies (one split)",
    "sae": "  SAE, its own encoder", "decoder": "  the SAE's decoder, matching pursuit",
    "subset": "  row subset", "gaussian": "  Gaussian atoms, covariance matched",
    "components": "  principal components",
    "covariance_matched": "covariance-matched rows, learned", "columns_shuffled": "columns shuffled, learned",
    "step_zero": "embedding at step 0, learned",
}  # fmt: skip
"""Rows of the table; those indented are of the embedding itself."""
Fvus = Mapping[tuple[str, bool], Tensor]
"""(replicates, ks) for each name, weighted or not."""


def error_figure(settings: Any, fvus: Fvus) -> Figure:
    """Error against k: the embedding beside its nulls, and the ways to code it."""
    ours = tuple(name for name in LABELS if name not in NULLS)
    panels = []
    for names, title in ((("observed", *NULLS), "The embedding and its nulls"), (ours, "Ways to code the embedding")):
        for weighted in (False, True):
            series = tuple(_series(settings, name, fvus[name, weighted]) for name in names)
            how = "weighted by frequency" if weighted else "tokens alike"
            panels.append(
                Plot(f"{title}, {how}", "atoms in a code, k", "FVU, held out", series, log_x=True, log_y=True)
            )
    caption = "Error of held-out tokens against sparsity; bands are 95% intervals over splits."
    return Figure("error-against-k", caption, tuple(panels))


def _series(settings: Any, name: str, values: Tensor) -> Series:
    spans = [interval(column) for column in values.T]
    style: Any = "points" if name == "sae" else "both"
    low, high = ([getattr(s, end) for s in spans] for end in ("low", "high"))
    return Series(LABELS[name].strip(), settings.ks, [s.mean for s in spans], style, low, high)


def path_figure(settings: Any, lasso: Mapping[str, Any]) -> Figure:
    """Error against alpha, and how many codes are provably unique."""
    curves = (Series("FVU", lasso["alphas"], lasso["fvu"], "both"),)
    shares = (Series("lasso", lasso["atoms"], lasso["fuchs"], "both"),
              Series("matching pursuit", settings.ks, lasso["fuchs_of_pursuit"], "both"))  # fmt: skip
    panels = (
        Plot("Lasso", "alpha, for rows of mean squared norm 1", "FVU, held out", curves, log_y=True),
        Plot("Provably the only code of least |z|₁", "atoms in a code", "share of rows", shares, log_x=True),
    )
    return Figure("lasso-path", "The error against the lasso's weight, and where Fuchs' condition holds.", panels)
