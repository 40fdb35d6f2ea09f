"""Toy models of two and three features: the expectation by quadrature against samples, side by side.

Both train the same models from the same start; losses are compared on the expectation itself.
"""

import numba
import torch

from benchmarks.timing import best_of, show
from toolkit.configs import ToyModel, ToyTraining
from toolkit.quadrature import expected_loss, train_exactly
from toolkit.toy import train

INSTANCES = 64
STEPS = 1000


def report() -> None:
    """Print the table and the ratios."""
    rows = []
    for features, hidden in ((2, 1), (3, 2)):
        for density in (0.03, 0.3, 1.0):
            rows += compare(ToyModel(features=features, hidden=hidden, instances=INSTANCES, density=(density,)))
    head = ("problem", "trained on", "us / instance-step", "times faster", "mean excess loss")
    show(f"Quadrature, {INSTANCES} instances, {STEPS} steps, {numba.get_num_threads()} threads", head, rows)


def compare(model: ToyModel) -> list[tuple[str, ...]]:
    """Seconds a step, and how far above the better of the two ends each instance is on average."""
    shape = (model.instances, model.features)
    data = {"densities": torch.full(shape, model.density[0]), "importances": torch.ones(shape)}
    training = ToyTraining(toy_steps=STEPS, toy_lr=1e-2)
    fits = {"samples, 1,024 a step": train, "the expectation": train_exactly}
    ends = {name: fit(model, training, **data) for name, fit in fits.items()}
    losses = {name: expected_loss(model, toy.W, toy.b, **data) for name, toy in ends.items()}
    best = torch.stack(list(losses.values())).amin(0)
    seconds = {name: best_of(lambda fit=fit: fit(model, training, **data)) for name, fit in fits.items()}
    slowest = max(seconds.values())
    problem = f"n={model.features} m={model.hidden} p={model.density[0]:g}"
    return [
        (problem, name, f"{spent / STEPS / INSTANCES * 1e6:.2f}", f"{slowest / spent:.1f}",
         f"{(losses[name] / best - 1).mean():.2%}")
        for name, spent in seconds.items()
    ]  # fmt: skip
