"""The suite on trial: verdicts on planted worlds against their truth, with error rates and p-values under the null."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import beta, kstest
from torch import Tensor

from controls.judging import Budget, verdicts
from controls.subject import subject_of
from controls.verdict import VERDICTS, Verdict
from controls.worlds import TRUTHS, World, WorldSample, check_sample, open_world
from toolkit.errors import require

NAME_BYTES = 64
"""Of a feature's name that are kept in a cell's result."""


@dataclass(frozen=True)
class Settings:
    """What is judged in every world seed."""

    world: str = "read-and-idle"
    """One of the six, or package.module:ClassName."""
    alpha: float = 0.05
    """Error rate asked of the verdicts."""
    budget: Budget = field(default_factory=Budget)
    """How much is computed for each."""


def judge_world(settings: Settings, cell: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    """One seed of a world: truths, verdicts and what they rest on, a row a feature.

    The cell holds the seed, the rows and, where it is not the world's own, the effect.
    """
    world = of_effect(open_world(settings.world), cell.get("effect"))
    number = (1_000_003 * seed + int(cell["seed"])) % 2**31  # what any generator takes
    sample = check_sample(world.sample(number, int(cell["rows"])), world)
    told = verdicts(subject_of(varying(sample)), alpha=settings.alpha, seed=number, budget=settings.budget)
    found = {one.evidence.feature: one for one in told}
    names = list(sample.labels)  # one that never or always occurs in this seed is undecided
    verdict = [found[name].verdict if name in found else "undecided" for name in names]
    numbers = [_numbers(found[name]) if name in found else [float("nan")] * len(COLUMNS) for name in names]
    return {
        "truth": torch.tensor([TRUTHS.index(sample.truth[name]) for name in names]),
        "verdict": torch.tensor([VERDICTS.index(one) for one in verdict]),
        "numbers": torch.tensor(numbers, dtype=torch.float64),
        "names": torch.tensor([list(name.encode()[:NAME_BYTES].ljust(NAME_BYTES)) for name in names]),
    }


def varying(sample: WorldSample) -> WorldSample:
    """The sample with those labels alone that occur and do not always occur."""
    return dataclasses.replace(sample, labels={name: y for name, y in sample.labels.items() if 0 < y.mean() < 1})


def of_effect(world: World, effect: float | None) -> World:
    """The world with its used features deciding so much of their outputs; itself without an effect.

    Raises:
        UserError: the world has no such setting.
    """
    if effect is None:
        return world
    require(
        dataclasses.is_dataclass(world) and not isinstance(world, type) and hasattr(world, "effect"),
        f"world {world.name!r} has no setting `effect` to be varied",
    )
    return cast(World, dataclasses.replace(cast(Any, world), effect=effect))


COLUMNS = ("r", "p_found", "p_token", "token", "p_training", "training", "p_causal", "absent_causal", "causal")
"""What is kept of each feature's evidence."""


def _numbers(one: Verdict) -> list[float]:
    e = one.evidence
    token = (e.token.p, e.token.effect) if e.token else (float("nan"), float("nan"))
    return [e.r, e.p_found, *token, e.training.p, e.training.effect, e.causal.p, e.causal.p_absent, e.causal.effect]


@dataclass(frozen=True)
class Rate:
    """A proportion of features, with the interval that the number of world seeds allows."""

    value: float
    """The proportion; nan where there was nothing to count."""
    low: float
    """Clopper and Pearson's (1934) 95% interval."""
    high: float
    """Its upper end."""
    features: int
    """Counted."""


def rate(hits: np.ndarray, counted: np.ndarray, seeds: np.ndarray) -> Rate:
    """Share of the features counted that are hits; features of one seed are taken to be as good as one observation."""
    units = len(np.unique(seeds[counted]))
    if units == 0:
        return Rate(float("nan"), 0.0, 1.0, 0)
    share = float(hits[counted].mean())
    k = share * units
    low = float(beta.ppf(0.025, k, units - k + 1)) if k > 0 else 0.0
    high = float(beta.ppf(0.975, k + 1, units - k)) if k < units else 1.0
    return Rate(share, low, high, int(counted.sum()))


@dataclass(frozen=True)
class Calibration:
    """What many seeds of a world add up to."""

    confusion: dict[str, dict[str, int]]
    """Features by truth and verdict."""
    by_name: dict[str, dict[str, int]]
    """Features by name and verdict."""
    false_model: Rate
    """Called model, of those that are something else."""
    false_dataset: Rate
    """Called dataset, of those that are something else."""
    power_model: Rate
    """Called model, of those that are."""
    power_dataset: Rate
    """Called dataset, of those that are."""
    undecided: Rate
    """Called undecided, of those that are there at all."""
    null_p: Float[np.ndarray, " absent"]
    """p-values of being found, of features that are absent."""
    uniform: float
    """p of Kolmogorov and Smirnov's test that these are uniform; nan without any."""

    def metrics(self) -> dict[str, Any]:
        """As result.json has them."""
        rates = {"false_model": self.false_model, "false_dataset": self.false_dataset, "power_model": self.power_model,
                 "power_dataset": self.power_dataset, "undecided": self.undecided}  # fmt: skip
        found: dict[str, Any] = {}
        for name, one in rates.items():
            key = name if name.startswith("power") else f"{name}_rate"
            found |= {key: one.value, f"{key}_interval": [one.low, one.high], f"{key}_features": one.features}
        return {**found, "null_p_uniform": self.uniform, "confusion": self.confusion, "by_name": self.by_name}


def summarise(cells: Sequence[Mapping[str, Tensor]], *, permutations: int) -> Calibration:
    """Rates over the seeds, one cell each."""
    seeds = np.concatenate([np.full(len(cell["truth"]), i) for i, cell in enumerate(cells)])
    truth, verdict = (np.concatenate([cell[name].numpy() for cell in cells]) for name in ("truth", "verdict"))
    names = [bytes(row.tolist()).decode(errors="replace").strip() for cell in cells for row in cell["names"]]
    called = {name: verdict == VERDICTS.index(name) for name in VERDICTS}
    is_ = {name: truth == TRUTHS.index(name) for name in TRUTHS}
    p = np.concatenate([cell["numbers"].numpy() for cell in cells])[:, COLUMNS.index("p_found")][is_["absent"]]
    p = p[np.isfinite(p)]
    return Calibration(
        confusion={t: {v: int((is_[t] & called[v]).sum()) for v in VERDICTS} for t in TRUTHS if is_[t].any()},
        by_name=_by_name(names, verdict),
        false_model=rate(called["model"], ~is_["model"], seeds),
        false_dataset=rate(called["dataset"], ~is_["dataset"], seeds),
        power_model=rate(called["model"], is_["model"], seeds),
        power_dataset=rate(called["dataset"], is_["dataset"], seeds),
        undecided=rate(called["undecided"], ~is_["absent"], seeds),
        null_p=p,
        uniform=uniformity(p, permutations),
    )


def uniformity(p: Float[np.ndarray, " values"], permutations: int) -> float:
    """Kolmogorov and Smirnov's test that p-values from ranks are uniform on 1/(m + 1), ..., 1.

    Ranks are spread over the step below them, as ties would make the test reject at any size. Exact values follow
    from the values alone.
    """
    if len(p) < 2:
        return float("nan")
    jitter = np.random.default_rng([len(p), 91]).random(len(p))
    return float(kstest(p - jitter / (permutations + 1), "uniform").pvalue)


def _by_name(names: Sequence[str], verdict: np.ndarray) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for name, code in zip(names, verdict, strict=True):
        found.setdefault(name, dict.fromkeys(VERDICTS, 0))[VERDICTS[code]] += 1
    return found
