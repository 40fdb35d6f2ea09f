"""From a subject to verdicts: the axes in the order in which they cost least."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from controls.axis_causal import Effort, causal_axes
from controls.axis_decodable import beyond_nulls, beyond_token, decode, null_scores
from controls.directions import covariates
from controls.subject import Subject, as_float
from controls.verdict import Evidence, Verdict, judge


@dataclass(frozen=True)
class Budget:
    """How much is computed for a verdict."""

    permutations: int = 999
    """Of documents' labels, at least: many features need more."""
    token_permutations: int = 199
    """Of labels within token types."""
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
    level, Y = alpha / 2, subject.table
    decoded, data = decode(subject, permutations=enough(budget, Y.shape[1], level), seed=seed)
    token = beyond_token(subject, data, decoded, permutations=budget.token_permutations, level=level, seed=seed)
    others = [covariates(Y, f, subject.fellows(f)) for f in range(Y.shape[1])]
    scores = null_scores(subject, others, seeds=budget.null_seeds, seed=seed, told=told)
    training = beyond_nulls(scores, subject.names, level=level, seed=seed)
    found = np.flatnonzero(decoded.p_found.numpy() <= level)
    read_outs = data.switches(as_float(Y[:, found]))
    causal = causal_axes(subject, read_outs, found, level=level, seed=seed, effort=budget.effort, told=told)
    return [
        Evidence(name, float(Y[:, f].mean()), float(decoded.r[f]), float(decoded.error[f]), float(decoded.p_found[f]),
                 token[f] if token else None, training[f], causal[f])
        for f, name in enumerate(subject.names)
    ]  # fmt: skip


def enough(budget: Budget, features: int, level: float) -> int:
    """Permutations for a p-value that stands beside as many labels of nothing."""
    return max(budget.permutations, int(2 * features / level))
