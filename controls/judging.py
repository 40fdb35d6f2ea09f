"""From a subject to verdicts: the axes in the order in which they cost least."""

from collections.abc import Callable
from dataclasses import dataclass, field

from controls.axes import Axis
from controls.axis_causal import Effort, causal_axes
from controls.axis_decodable import beyond_nulls, beyond_token, decode, null_scores
from controls.subject import Subject
from controls.verdict import Evidence, Verdict, judge


@dataclass(frozen=True)
class Budget:
    """How much is computed for a verdict."""

    permutations: int = 499
    """Of labels, for each scheme."""
    null_seeds: int = 99
    """Networks drawn anew, of each kind."""
    effort: Effort = field(default_factory=Effort)
    """Of the causal axis."""


def verdicts(
    subject: Subject,
    *,
    alpha: float = 0.05,
    seed: int = 0,
    budget: Budget | None = None,
    told: Callable[[int], None] = lambda done: None,
) -> list[Verdict]:
    """Judge every feature of a subject.

    Raises:
        UserError: what the subject's parts refuse.
    """
    return judge(gather(subject, alpha=alpha, seed=seed, budget=budget or Budget(), told=told), alpha=alpha)


def gather(
    subject: Subject, *, alpha: float, seed: int, budget: Budget, told: Callable[[int], None] = lambda done: None
) -> list[Evidence]:
    """The evidence for every feature."""
    level = alpha / 2
    decoded, data = decode(subject, permutations=budget.permutations, seed=seed)
    nulls = null_scores(subject, data, seeds=budget.null_seeds, seed=seed, told=told)
    training = beyond_nulls(decoded, nulls, level=level)
    causal = causal_axes(subject, level=level, seed=seed, effort=budget.effort, told=told)
    token: list[Axis] | list[None] = beyond_token(decoded, level=level) or [None] * len(training)
    rates = subject.table.mean(0)
    return [
        Evidence(name, float(rates[f]), float(decoded.r[f]), float(decoded.error[f]), float(decoded.p_found[f]),
                 token[f], training[f], causal[f])
        for f, name in enumerate(subject.names)
    ]  # fmt: skip
