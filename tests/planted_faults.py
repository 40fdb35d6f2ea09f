"""Cells for the tests of faults: importable by worker processes."""

import os
import time
from pathlib import Path

import torch


def told(settings, cell, seed):
    """A cell that writes down its process, and takes as long as it is told to."""
    (Path(settings) / f"pid-{os.getpid()}").touch()
    end = time.monotonic() + cell["seconds"]
    while time.monotonic() < end and not (Path(settings) / "enough").exists():
        time.sleep(0.05)
    return {"value": torch.arange(cell["x"], dtype=torch.float64).sqrt().sum()}
