"""What every training of toy models and networks shares: chunks of steps, checkpoints, rates, Adam, divergence."""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from toolkit.errors import DivergenceError

EVALUATION = 2**40
"""Step numbers from here on are never trained on: batches that measure."""

_CHUNK = 100


@runtime_checkable
class Checkpoint(Protocol):
    """Where a training keeps its state, so that a killed run goes on to the same numbers."""

    def load(self) -> dict[str, Tensor] | None:
        """The last state saved, or None."""
        ...

    def save(self, state: Callable[[], dict[str, Tensor]]) -> None:
        """Keep a state, if it is time to; `state` is called only then."""
        ...


Progress = Callable[[int], None]
"""Called with the number of steps just finished."""
Watch = Callable[[int, Mapping[str, float]], None]
"""Called now and then with the number of steps finished and what was measured, by name."""
State = dict[str, Tensor]
"""Parameters, their moments and the history, by name."""
Advance = Callable[[State, int, np.ndarray], Tensor]
"""(state, first step, learning rates) -> losses (steps, instances); changes the state in place."""


def descend(
    start: Callable[[], State],
    advance: Advance,
    rates: np.ndarray,
    *,
    what: str,
    device: str,
    progress: Progress | None,
    checkpoint: Checkpoint | None,
) -> State:
    """Take len(rates) steps from `start()`, or from where the checkpoint stands; returns the final state.

    Raises:
        DivergenceError: a loss or a parameter stopped being finite (the step is named).
    """
    begun = start() if checkpoint is None else checkpoint.load() or start()
    state = {name: value.to(device if name != "history" else "cpu") for name, value in begun.items()}
    done = len(state["history"])
    with threadpool_limits(1, user_api="blas"):
        while done < len(rates):
            todo = rates[done : done + _CHUNK]
            losses = advance(state, done, todo)
            _check_finite(losses, state, done, what)
            state["history"] = torch.cat([state["history"], losses])
            done += len(todo)
            if progress:
                progress(len(todo))
            if checkpoint:
                checkpoint.save(lambda: state)
    return state


def learning_rates(steps: int, peak: float) -> np.ndarray:
    """Constant for the first half, then a cosine to zero, so that the final loss is not optimiser noise."""
    progress = np.arange(steps) / steps
    return peak * np.where(progress < 0.5, 1.0, 0.5 * (1 + np.cos(np.pi * (2 * progress - 1))))


def adam(parameter: Tensor, gradient: Tensor, moments: Tensor, rate: float, step: int, decay: float = 0.0) -> None:
    """One step of AdamW (Loshchilov and Hutter 2019, algorithm 2) in place; `step` counts from 1."""
    moments[0].lerp_(gradient, 0.1)
    moments[1].lerp_(gradient.square(), 0.001)
    size = (moments[1] / (1 - 0.999**step)).sqrt_().add_(1e-8)
    parameter.mul_(1 - rate * decay).sub_(rate / (1 - 0.9**step) * moments[0] / size)


def _check_finite(losses: Tensor, state: State, first: int, what: str) -> None:
    bad = (~losses.isfinite()).any(1).nonzero()
    if len(bad) or not all(bool(value.isfinite().all()) for value in state.values()):
        raise DivergenceError(what, first + (int(bad[0]) if len(bad) else len(losses) - 1))
