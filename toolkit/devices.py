"""Where a fit runs, and the bar that shows how far it is."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tqdm import tqdm

from toolkit.descent import Progress
from toolkit.errors import UserError


def resolve(device: str) -> str:
    """cpu or cuda for a `--device` value.

    Raises:
        UserError: cuda was asked for and there is none.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device='cuda' (--device cuda): torch sees no CUDA device here; take cpu (--device cpu)")
    return device


@contextmanager
def progress_bar(steps: int, what: str, quiet: bool) -> Iterator[Progress]:
    """A bar with rate and remaining time on standard error; nothing when quiet."""
    with tqdm(total=steps, desc=what, unit="step", disable=quiet, dynamic_ncols=True) as bar:
        yield lambda done: (bar.update(done), None)[1]
