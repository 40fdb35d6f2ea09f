"""What N2's measurements come to: off-target shares of the families, in toy worlds and in a model.

Bars of the toy checks were set from theory (`steering_world`) before anything was measured: for least squares without
sampling error the shares off target are .155 (probe), .156 (dual), .019 (weighted dual), .438 (differences of means),
0 (patterns of labels) and .92 (random, before the half that moves the wrong way counts as off target) on the linear
network.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.checks import Check, Interval, at_least, at_most, interval, near
from experiments.figures import Figure, Heatmap, Plot, Series
from experiments.network.steering_families import DUAL, FAMILIES, LABELS, LOOSE, MEANS, PROBE, RANDOM, WEIGHTED
from experiments.registry import Outcome

TRUTH = "the network's own dual"
TOY_FAMILIES = (*FAMILIES, TRUTH)
KINDS = {
    (False, True, True): "linear network",
    (True, True, True): "ReLU network",
    (False, False, True): "linear, all features labelled",
    (False, True, False): "linear, attributes uncorrelated",
}
HEADS = ("off target", "target effect", "loss", "p target, each")
CLAIMED = {
    "directions made from the probes alone": (PROBE, DUAL),
    "those made from probes and the rows' covariance": (PROBE, DUAL, WEIGHTED, LOOSE),
    "all families": FAMILIES,
}
"""Among which families it is said whether the dual, plain or weighted, has the smallest off-target effect."""
_DRAWS = 2_000


def summarise(settings: Any, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Shares off target, side by side."""
    toy = {
        name: [f for c, f in zip(cells, found, strict=True)
               if c["part"] == "toy" and (c["relu"], c["others"], c["correlated"]) == kind]
        for kind, name in KINDS.items()
    }  # fmt: skip
    shares = {
        name: torch.stack([_off(one).mean(1) for one in each]) for name, each in toy.items()
    }  # (worlds, families)
    model = {c["family"]: f for c, f in zip(cells, found, strict=True) if c["part"] == "model"}
    metrics: dict[str, Any] = {
        name: {f: each[:, i].tolist() for i, f in enumerate(TOY_FAMILIES)} for name, each in shares.items()
    }
    if model:
        metrics["model"] = {family: _numbers(one) for family, one in model.items()}
    figures = (_sides(toy, model, settings), _leaks(toy["ReLU network"][0], model, settings))
    text = _conclusion(shares, model, settings)
    return Outcome(text, checks(shares), figures, metrics, table=_table(toy, model, settings))


def _off(one: Mapping[str, Tensor]) -> Tensor:
    """Share of the divergence off target, (families, m)."""
    return 1 - one["explained"].mean(2) / one["divergence"].mean(2)


def checks(shares: Mapping[str, Tensor]) -> tuple[Check, ...]:
    """The weighted dual against the rest, by world; then what must not differ."""
    found = []
    for name in ("linear network", "ReLU network"):
        off = dict(zip(TOY_FAMILIES, shares[name].mT, strict=True))
        for family, bar in ((PROBE, 0.05), (DUAL, 0.05), (MEANS, 0.2), (RANDOM, 0.5)):
            claim = f"{name}: off target, {family} more than the weighted dual"
            found.append(at_least(claim, off[family] - off[WEIGHTED], bar))
        claim = f"{name}: off target, weighted dual more than patterns of labels (theory: .02)"
        found.append(near(claim, off[WEIGHTED] - off[LABELS], 0.02, 0.05))
        found.append(at_most(f"{name}: off target, {TRUTH}", off[TRUTH], 1e-6))
    alone = dict(zip(TOY_FAMILIES, shares["linear, all features labelled"].mT, strict=True))
    found.append(near("all features labelled: dual less weighted dual", alone[DUAL] - alone[WEIGHTED], 0, 0.02))
    apart = dict(zip(TOY_FAMILIES, shares["linear, attributes uncorrelated"].mT, strict=True))
    found.append(near("uncorrelated: differences of means less weighted dual", apart[MEANS] - apart[WEIGHTED], 0, 0.03))
    return tuple(found)


def _numbers(one: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Of a family in the model, an entry an attribute."""
    target = one["along"][0].diagonal(dim1=0, dim2=1).mT  # (m, places)
    p = _p(one["random_target"][0], target.mean(1))
    share = 1 - _off(one)[0]
    p_share = _p(one["random_explained"][0], share)
    others = one["along"][0].mean(2)
    leak = (others - others.diag().diag()).abs().amax(1)
    named = {"length": one["scales"][0], "target": target.mean(1), "share": share, "leakage": leak,
             "loss": one["loss"][0].mean(1), "p_target": p, "p_share": p_share}  # fmt: skip
    return {name: value.tolist() for name, value in named.items()}


def _p(null: Tensor, observed: Tensor) -> Tensor:
    """(1 + draws that reach it) / (1 + draws); NaN for a vector that cannot move the outputs so far."""
    return torch.where(observed.isfinite(), (1 + (null >= observed[:, None]).sum(1)) / (1 + null.shape[1]), torch.nan)


def over_documents(top: Tensor, bottom: Tensor, documents: Tensor) -> Interval:
    """Ratio of sums over places (..., places), averaged over what is left, with a 95% interval by drawing documents."""
    held, row = documents.unique(return_inverse=True)
    sums = [
        torch.zeros(*v.shape[:-1], len(held), dtype=torch.float64).index_add(-1, row, v.double()) for v in (top, bottom)
    ]
    draw = np.random.default_rng(0).multinomial(len(held), np.full(len(held), 1 / len(held)), _DRAWS)
    drawn = [s @ torch.as_tensor(draw, dtype=torch.float64).mT for s in sums]  # (..., draws)
    ratios = (drawn[0] / drawn[1]).reshape(-1, _DRAWS).mean(0)  # (..., draws) -> (draws,)
    low, high = np.nanquantile(ratios.numpy(), [0.025, 0.975])
    return Interval(float((sums[0].sum(-1) / sums[1].sum(-1)).mean()), float(low), float(high))


def _model_intervals(one: Mapping[str, Tensor]) -> dict[str, Interval]:
    """Averages over attributes."""
    d, along = one["divergence"][0], one["along"][0]
    target = along.diagonal(dim1=0, dim2=1).mT
    one_each = torch.ones_like(d)
    return {
        "off": over_documents(d - one["explained"][0], d, one["documents"]),
        "target": over_documents(target, one_each, one["documents"]),
        "loss": over_documents(one["loss"][0], one_each, one["documents"]),
    }


def _spread(found: Interval) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _table(toy: Mapping[str, Sequence[Mapping[str, Tensor]]], model: Mapping[str, Any], settings: Any) -> str:
    lines = [f"{'share off target, mean over attributes and worlds':34}"]
    lines.append(f"{'':24}" + "".join(f"{name:>33}" for name in toy))
    for i, family in enumerate(TOY_FAMILIES):
        values = [torch.stack([_off(one)[i].mean() for one in each]).mean() for each in toy.values()]
        lines.append(f"{family:24}" + "".join(f"{v:33.4f}" for v in values))
    if model:
        lines += ["", f"{settings.model}, {settings.nats:g} nats, intervals over documents, means over attributes",
                  f"{'':24}" + "".join(f"  {h:>28}" for h in HEADS)]  # fmt: skip
        for family, one in model.items():
            values = [_spread(v) for v in _model_intervals(one).values()]
            values.append(" ".join(f"{p:.2f}" for p in _numbers(one)["p_target"]))
            lines.append(f"{family:24}" + "".join(f"  {v:>28}" for v in values))
    return "\n".join(lines)


def _conclusion(shares: Mapping[str, Tensor], model: Mapping[str, Any], settings: Any) -> str:
    told = []
    for name in ("linear network", "ReLU network"):
        off = ", ".join(f"{f} {v:.3f}" for f, v in zip(TOY_FAMILIES, shares[name].mean(0), strict=True))
        order = shares[name].mean(0)[:-1].argsort().tolist()
        told.append(
            f"{name}: {off}; least, the network's own aside, {' and then '.join(FAMILIES[i] for i in order[:2])}"
        )
    text = f"Share of the movement off target where the truth is known: {'; '.join(told)}. {_claimed(shares)}"
    if not model:
        return text
    found = ", ".join(f"{family} {_spread(_model_intervals(one)['off'])}" for family, one in model.items())
    return (
        f"{text} In {settings.model}, steered at {settings.nats:g} nats, what the attribute does not explain: {found}."
    )


def _claimed(shares: Mapping[str, Tensor]) -> str:
    """Whether the better dual has the smallest off-target effect: by the interval over worlds of its rival's excess."""
    told = []
    for among, families in CLAIMED.items():
        each = []
        for name in ("linear network", "ReLU network"):
            off = dict(zip(TOY_FAMILIES, shares[name].mT, strict=True))
            ranked = sorted(families, key=lambda one: float(off[one].mean()))
            dual = next(one for one in ranked if one in (DUAL, WEIGHTED))
            rival = next(one for one in ranked if one not in (DUAL, WEIGHTED))
            more = interval(off[rival] - off[dual])
            verdict = "holds" if more.low > 0 else "does not hold" if more.high < 0 else "is not settled"
            each.append(f"{verdict} in the {name} ({rival} less {dual}: {_spread(more)})")
        told.append(f"among {among} it {' and '.join(each)}")
    return f"'The dual has the smallest off-target effect': {'; '.join(told)}."


def _sides(toy: Mapping[str, Any], model: Mapping[str, Any], settings: Any) -> Figure:
    """Families side by side, a point an attribute (and world)."""
    panels = []
    for name in ("linear network", "ReLU network"):
        off = {f: torch.cat([_off(one)[i] for one in toy[name]]) for i, f in enumerate(TOY_FAMILIES)}
        panels.append(_columns(name, "share off target", off))
    if model:
        targets = {family: one["along"][0].diagonal(dim1=0, dim2=1).mean(0) for family, one in model.items()}
        panels.append(
            _columns(settings.model, "share off target", {family: _off(one)[0] for family, one in model.items()})
        )
        panels.append(_columns(settings.model, "target effect / expected effect", targets))
    caption = (
        "Each vector scaled to the same movement of the outputs; a point an attribute, in toy worlds of every world."
    )
    return Figure("steering", caption, tuple(panels))


def _columns(title: str, y: str, values: Mapping[str, Tensor]) -> Plot:
    spread = (torch.linspace(-0.3, 0.3, len(each)) for each in values.values())
    series = [
        Series(name, at + across, each, "points")
        for at, ((name, each), across) in enumerate(zip(values.items(), spread, strict=True), start=1)
    ]
    return Plot(title, "family, in the order of the legend", y, tuple(series))


def _leaks(toy: Mapping[str, Tensor], model: Mapping[str, Any], settings: Any) -> Figure:
    """For each family what moves (across) when an attribute is steered (down), over its own movement."""
    found = [(f"{family}, ReLU network", toy["along"][i]) for i, family in enumerate(TOY_FAMILIES[:-1])]
    found += [(f"{family}, {settings.model}", one["along"][0]) for family, one in model.items()]
    panels = []
    for title, along in found:
        moved = along.mean(2)
        own = moved.diagonal().abs().clamp(min=1e-12)
        panels.append(Heatmap(title, (moved / own[:, None]).clamp(-1, 1), x="attribute moved", y="attribute steered"))
    caption = "Movement of each attribute's expected effect, beyond what they share, over that of the one steered."
    return Figure("leakage", caption, tuple(panels))
