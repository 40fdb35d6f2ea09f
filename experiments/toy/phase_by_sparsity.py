"""T1: a ReLU model represents more features than it has dimensions once they are sparse; a linear one never does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from experiments.checks import Check, above, at_least, at_most, interval, near, share
from experiments.figures import Figure, Heatmap, Plot, Series
from experiments.registry import Experiment, Outcome, register
from toolkit.configs import ToyModel, ToyTraining
from toolkit.metrics import gram, represented
from toolkit.plateaus import rank_correlation
from toolkit.toy import train

FEATURES, HIDDEN = 20, 5


@dataclass(frozen=True)
class Settings:
    """What is trained."""

    densities: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
    """1 - S, the probability that a feature is on, densest first."""
    seeds: int = 16
    """Instances of each density; the best half by loss is kept, since single seeds get stuck."""
    steps: int = 3000
    """Of training."""
    output: str = "relu"
    """Activation of the model that is compared with the linear one."""


def cells(settings: Settings) -> list[dict[str, Any]]:
    """One for each density, of the linear model and of the other."""
    outputs = {"linear": "linear", "model": settings.output}
    return [{"role": role, "output": o, "density": p} for p in settings.densities for role, o in outputs.items()]


def measure(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """Train the instances; the best half, best first."""
    model = ToyModel(
        features=FEATURES, hidden=HIDDEN, instances=settings.seeds, density=(cell["density"],), importance=0.7,
        output=cell["output"],
    )  # fmt: skip
    # At density .001 a batch has 20 features on: the larger rate brings the unimportant ones to rest in time.
    toy = train(model, ToyTraining(toy_steps=settings.steps, toy_lr=1e-2), seed=seed)
    return {"W": toy.W[toy.loss.argsort()[: settings.seeds // 2]]}


def principal_components() -> Tensor:
    """Gram matrix of the best linear model: the identity on the HIDDEN most important features, zero elsewhere.

    With independent features of one variance v the loss is v |diag(I)^1/2 (1 - G)|_F^2 plus the bias's part, and by
    Eckart and Young (1936) no G of that rank comes below v times the sum of the other importances.
    """
    return torch.diag((torch.arange(FEATURES) < HIDDEN).float())


def _checks(linear: Tensor, model: Tensor, densities: Sequence[float]) -> tuple[Check, ...]:
    """Both (densities, instances, hidden, features), densest first."""
    off = (gram(linear) - principal_components()).abs().amax((-2, -1))
    first = (represented(linear) == (torch.arange(FEATURES) < HIDDEN)).all(-1)
    counts, plain = represented(model).sum(-1).double(), represented(linear).sum(-1).double()
    ranks = torch.tensor([rank_correlation(-torch.tensor(densities), column) for column in counts.T])
    return (
        share("linear, every density: exactly the five most important are represented", first.flatten(), 1),
        at_most("linear: largest |entry of G - G of the principal components|", off.flatten(), 0.05),
        near("ReLU, densest: features represented", counts[0], 5, 0.5),
        at_least("ReLU: rank correlation of sparsity and features represented", ranks, 0.9),
        at_least("ReLU, sparsest: features represented, twice the dimensions or more", counts[-1], 2 * HIDDEN),
        above("sparsest: features represented, ReLU less linear", counts[-1] - plain[-1], 0),
    )


def summarise(settings: Settings, cells: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Tensor]]) -> Outcome:
    """Counts against sparsity, and the linear model against its principal components."""
    results = list(zip(cells, found, strict=True))
    linear, model = (torch.stack([r["W"] for c, r in results if c["role"] == o]) for o in ("linear", "model"))
    curves = []
    for name, W in (("ReLU output", model), ("linear output", linear)):
        spread = [interval(row) for row in represented(W).sum(-1).double()]
        low, high = [s.low for s in spread], [s.high for s in spread]
        curves.append(Series(name, [1 / p for p in settings.densities], [s.mean for s in spread], "both", low, high))
    dots = {"dimensions": float(HIDDEN), "twice": 2.0 * HIDDEN, "features": float(FEATURES)}
    counts = Plot("features represented", "1 / (1 - S)", "‖Wᵢ‖² > ½", tuple(curves), log_x=True, levels=dots)
    sparser = zip(settings.densities[1:], model[1:], strict=True)
    grams = [Heatmap(f"ReLU, 1 - S = {p:g}", gram(W[0])) for p, W in sparser]
    control = Heatmap("linear, sparsest", gram(linear[-1, 0]))
    caption = "Features represented (95% intervals); Gram matrices of the best instances, most important first."
    first, last = (represented(W).sum(-1) for W in (model[0], model[-1]))
    five = (represented(linear) == (torch.arange(FEATURES) < HIDDEN)).all(-1).double().mean()
    conclusion = (
        f"The linear model represents just the five most important features in {five:.0%} of cases. With "
        f"{settings.output} output {first.double().mean():.3g} features are represented when dense and "
        f"{last.double().mean():.3g} ({last.min()} to {last.max()}) at S = {1 - settings.densities[-1]:g}; antipodal "
        f"pairs would hold {2 * HIDDEN}, and there are {FEATURES}."
    )
    figure = Figure("gram", caption, (counts, control, *grams))
    return Outcome(conclusion, _checks(linear, model, settings.densities), (figure,))


SMOKE = Settings(densities=(1.0, 0.1, 0.01, 0.001), seeds=8, steps=600)

EXPERIMENT = register(Experiment(
    name="superposition-with-sparsity", row="T1",
    question="When does a model represent more features than it has dimensions?",
    claim="the linear model never does; with a ReLU the number represented grows with sparsity",
    source="Elhage et al. 2022, Toy Models of Superposition, section 2",
    controls=("the linear model at every density, against its principal components", "dense inputs (S=0)"),
    scales={"smoke": SMOKE, "default": Settings(), "paper": Settings(seeds=64, steps=10000)},
    seconds={"smoke": 9, "default": 36, "paper": 480},
    cells=cells, measure=measure, summarise=summarise, broken=replace(SMOKE, output="linear"),
))  # fmt: skip
