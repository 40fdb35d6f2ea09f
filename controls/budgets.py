"""How much an audit spends: three budgets, and what each takes on this machine with this model."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch

from controls.axis_causal import Effort
from controls.judging import Budget, enough
from controls.model_weights import drawn_anew
from controls.reading import Reading
from controls.worlds import NULL_KINDS
from toolkit.downstream import LanguageDownstream
from toolkit.errors import require, unknown
from toolkit.forward import forward_to
from toolkit.language import LanguageModel


@dataclass(frozen=True)
class Spending:
    """What one budget buys."""

    rows: int
    """Tokens that are judged, of what the corpus has; whole documents."""
    null_rows: int
    """Of these, those at which null networks are read."""
    places: int
    """Of these, those at which the rest of the network is run."""
    verdict: Budget
    """Permutations, null networks and interventions behind the verdict."""
    draws: int
    """Of each further control that is cheap."""
    moves: int
    """Of each that runs the rest of the network at every draw."""
    dear: int
    """Of each that costs a network or a training a draw; 0 leaves these out."""


BUDGETS = {
    "quick": Spending(4_000, 2_000, 400, Budget(999, 99, 39, Effort(16, 60, 8, 199, 2)), 99, 0, 0),
    "standard": Spending(100_000, 2_000, 600, Budget(999, 199, 39, Effort(24, 100, 8, 999, 2)), 199, 39, 2),
    "thorough": Spending(400_000, 8_000, 1_600, Budget(4_999, 999, 199, Effort()), 999, 199, 39),
}
"""By name. 39 null networks of each kind are the fewest whose rank can pass a level of 2.5%."""


def spending(name: str) -> Spending:
    """The budget of that name.

    Raises:
        UserError: there is none.
    """
    if name not in BUDGETS:
        raise unknown("budget", name, BUDGETS)
    return BUDGETS[name]


@dataclass(frozen=True)
class Rates:
    """What this machine does, one core at a time."""

    rows: float
    """Rows a second up to the hook, each with all that is read for it: a text's end takes a whole window."""
    draw: float
    """Seconds for a null network of each kind, all kinds together."""
    rest: float
    """Rows a second from the hook on."""
    width: int
    """Numbers in a row."""

    def seconds(self, bought: Spending, *, features: int, available: int, workers: int, alpha: float) -> float:
        """About how long an audit takes; of the further controls the dearest are counted."""
        rows, v = min(bought.rows, available), bought.verdict
        null = min(bought.null_rows, rows)
        read = rows / self.rows
        scored = null / self.rows + null * self.width**2 * 6 / FLOPS
        networks = v.null_seeds * (self.draw + len(NULL_KINDS) * scored)
        labels = features * rows * self.width * 2 * (enough(v, features, alpha / 2) + v.token_permutations) / FLOPS
        e = v.effort
        moved = features * (2 * e.drawn_rows * 4 * e.draws + 16 * e.rows + 2 * e.matched_rows * e.matched)
        dear = bought.dear * 9 * (self.draw / 2 + null / self.rows)
        return read + (networks + labels + (moved + bought.places) / self.rest + dear) / workers


FLOPS = 2e10
"""Floating-point operations a second that products of these shapes reach on one core, roughly."""
TRIED = 512
"""Tokens of the forward pass that is timed."""


def measured(model: LanguageModel, hook: str, reading: Reading) -> Rates:
    """Time a little of everything, on one thread as workers have it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tokens = reading.tokens[: max(1, TRIED // reading.tokens.shape[1])]
        forward = forward_to(model, [hook])
        forward(tokens)
        began = time.perf_counter()
        values = forward(tokens)[hook]
        shown = len(reading.rows) / reading.tokens.numel() * tokens.numel()
        read = shown / (time.perf_counter() - began)
        began = time.perf_counter()
        for kind in NULL_KINDS:
            drawn_anew(model, kind, seed=0, until=hook)
        draw = time.perf_counter() - began
        first = reading.part(np.zeros(1, int))
        rest = LanguageDownstream(model, hook, first.tokens, first.rows)
        rows = 32 if rest.is_cached else 2
        began = time.perf_counter()
        rest(rest.activations.repeat(rows, 1), torch.zeros(rows, dtype=torch.long))
        return Rates(read, draw, rows / (time.perf_counter() - began), values.shape[-1])
    finally:
        torch.set_num_threads(threads)


def check_level(alpha: float) -> None:
    """Refuse an error rate that is none.

    Raises:
        UserError: it does not lie between 0 and 1.
    """
    require(0 < alpha < 1, f"alpha must lie between 0 and 1, got {alpha}")


def check_draws(alpha: float, bought: Spending) -> None:
    """Refuse an error rate that a rank among so few null draws could not reach.

    Raises:
        UserError: how many draws it takes.
    """
    v, least = bought.verdict, ceil(2 / max(alpha, 1e-300) - 1e-9) - 1
    draws = {
        "null networks of each kind": v.null_seeds,
        "permutations within types": v.token_permutations,
        "matched directions": v.effort.matched,
    }
    for name, count in draws.items():
        has = f"alpha {alpha:g} needs {least:,} {name} and the budget has {count:,}"
        require(count >= least, f"{has}: take a larger budget or a larger alpha")


def told(rates: Rates, chosen: str, *, features: int, available: int, workers: int, alpha: float) -> str:
    """One line: what each budget takes."""
    sizes: dict[str, Any] = {"features": features, "workers": workers, "alpha": alpha}
    ended = available < 0.9 * BUDGETS[chosen].rows  # the text came to its end before the budget did
    parts: Sequence[str] = [
        f"{name} {duration(rates.seconds(one, available=available if ended else one.rows, **sizes))}"
        for name, one in BUDGETS.items()
    ]
    who = f"{features} features, {workers} worker{'s' * (workers > 1)}"
    return f"{who}, about: {', '.join(parts)}, further controls on top; this is {chosen}"


def duration(seconds: float) -> str:
    """In words, to two digits or so."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
