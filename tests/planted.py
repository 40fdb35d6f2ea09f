"""Cells for the tests of sweeps: importable by worker processes."""

import os
import signal
import time
from pathlib import Path

import torch


def squares(settings, cell, seed):
    """A cell's square, its seed, a sum whose rounding depends on threads, and a trace that it was computed."""
    if "trace" in cell:
        with Path(cell["trace"]).open("a") as file:
            file.write(f"{cell['x']}\n")
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(300_000, generator=generator)
    return {"square": torch.tensor(cell["x"] ** 2), "seed": torch.tensor(seed), "sum": (numbers @ numbers).sum()}


def mortal(settings, cell, seed):
    """The same, but one cell kills its process once the others have had time to finish."""
    if cell["x"] == settings and not Path(cell["spared"]).exists():
        time.sleep(3)
        os.kill(os.getpid(), signal.SIGKILL)
    return squares(settings, cell, seed)


def killed_once(settings, cell, seed):
    """The same, but one cell kills the first process it is given to."""
    mark = Path(cell["spared"])
    if cell["x"] == settings and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return squares(settings, cell, seed)


def failing(settings, cell, seed):
    """A mistake in the program."""
    raise ZeroDivisionError(f"cell {cell['x']}")
