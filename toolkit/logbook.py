"""Where a training's numbers go beside the progress bar: nowhere, to TensorBoard's files, or to Weights & Biases."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import UserError

if TYPE_CHECKING:  # the settings check themselves with this file, and --help imports no torch
    from toolkit.descent import Watch
    from toolkit.runs import Run


def check_log(log: str) -> None:
    """Refuse a log that is not installed, before anything long begins.

    Raises:
        UserError: which, and what to install.
    """
    if log != "none" and log not in sys.modules and find_spec(log) is None:
        raise UserError(f"--log {log}: it is not installed; pip install 'feature-verdict[logging]'")


@contextmanager
def logbook(log: str, folder: Path, *, name: str, config: Mapping[str, Any]) -> "Iterator[Watch | None]":
    """A `Watch` that writes what it is told, or None where nothing is asked for.

    TensorBoard's files go to `folder`/tensorboard, where a resumed run adds to them; Weights & Biases gets a run in the
    project feature-verdict, or a local one where WANDB_MODE=offline.

    Raises:
        UserError: Weights & Biases cannot be reached, or nobody has logged in.
    """
    if log == "none":
        yield None
    elif log == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(folder / "tensorboard")) as writer:
            yield lambda step, told: _written(writer, step, told)
    else:
        run = _wandb(folder, name, config)
        try:
            yield lambda step, told: run.log(dict(told), step=step)
        finally:
            run.finish()


def logged(log: str, run: "Run | None") -> "AbstractContextManager[Watch | None]":
    """The logbook of a run folder; none for a process that has no folder."""
    if run is None:
        return nullcontext()
    return logbook(log, run.folder, name=run.name, config=run.config)


def _written(writer: Any, step: int, told: Mapping[str, float]) -> None:
    for name, value in told.items():
        writer.add_scalar(name, value, step)


def _wandb(folder: Path, name: str, config: Mapping[str, Any]) -> Any:
    import wandb

    try:
        return wandb.init(project="feature-verdict", name=name, dir=str(folder), config=dict(config))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"--log wandb: {reason}; wandb login, or WANDB_MODE=offline") from error
