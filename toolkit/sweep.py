"""Cells measured on every core or on a cluster, each kept as soon as it is finished."""

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from toolkit.checkpoints import DamagedError, load_sealed, save_sealed
from toolkit.errors import UserError

CELLS = "checkpoint_cell_*.safetensors"
"""Files of finished cells in the folder of a run."""
Cell = Mapping[str, Any]
"""One unit of work: plain JSON values. Cells are measured apart, on any worker, in any order."""
Measured = Mapping[str, Tensor]
"""What a cell yields."""
Measure = Callable[[Any, Cell, int], Measured]


def sweep(
    measure: Measure,
    settings: Any,
    cells: Sequence[Cell],
    *,
    seed: int,
    folder: Path,
    workers: int = 1,
    cluster: str = "",
    quiet: bool = True,
    label: str = "",
) -> list[dict[str, Tensor]]:
    """What `measure` yields for every cell, in the order of the cells.

    Each cell is computed on one thread, so the numbers are the same on one core, on many and on a cluster. A
    finished cell is written to `folder` at once; those found there are not measured again.

    Raises:
        UserError: a worker died, the cluster cannot be reached, or a kept cell is damaged.
    """
    files = [folder / f"checkpoint_cell_{i:05d}.safetensors" for i in range(len(cells))]
    todo = [i for i, file in enumerate(files) if not file.exists()]
    jobs = [(measure, settings, cells[i], seed, i) for i in todo]
    with tqdm(total=len(cells), initial=len(cells) - len(todo), desc=label, unit="cell", disable=quiet) as bar:
        for i, found in _computed(jobs, min(workers, len(todo)), cluster):
            save_sealed(found, files[i])
            bar.update()
    return [_kept(file) for file in files]


def _kept(file: Path) -> dict[str, Tensor]:
    try:
        return load_sealed(file)
    except DamagedError as error:
        raise UserError(
            f"{file} is damaged ({error}): delete this file, and --resume measures its cell again"
        ) from None


def _one(measure: Measure, settings: Any, cell: Cell, seed: int, i: int) -> tuple[int, dict[str, Tensor]]:
    with one_thread():
        return i, {name: value.detach().contiguous().clone() for name, value in measure(settings, cell, seed).items()}


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums over several threads round differently; one thread gives the same numbers everywhere."""
    import numba

    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])


def _computed(jobs: list[tuple[Any, ...]], workers: int, cluster: str) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Finished cells as they come, from this process, from worker processes or from a Dask cluster."""
    if not jobs:
        return
    if not cluster and workers <= 1:
        yield from (_one(*job) for job in jobs)
        return
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    with _backend(workers, cluster) as backend, parallel_config(**backend):
        # loky renews a worker whose memory has grown, and says so; nothing is lost by it.
        warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
        try:
            yield from Parallel(return_as="generator_unordered")(delayed(_one)(*job) for job in jobs)
        except TerminatedWorkerError:
            raise UserError(
                "a worker died, perhaps for want of memory; finished cells are kept: --resume goes on with the rest, "
                "fewer --workers need less memory"
            ) from None


def check_cluster(address: str) -> None:
    """Ask a cluster whether it is there, before anything long begins; an empty address asks nobody.

    Raises:
        UserError: no scheduler answers.
    """
    if address:
        with _backend(1, address):
            pass


def _follow(parent: int) -> None:
    """End this worker soon after the process that started it: one that is killed can tell its workers nothing."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if os.name == "posix":  # elsewhere a process keeps its parent's number
        threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _backend(workers: int, cluster: str) -> Iterator[dict[str, Any]]:
    if not cluster:
        follow = {"initializer": _follow, "initargs": (os.getpid(),)}
        yield {"backend": "loky", "n_jobs": workers, "inner_max_num_threads": 1, **follow}
        return
    try:
        from toolkit.cluster import dask_backend
    except ImportError:
        raise UserError("--cluster needs Dask: install the extra, pip install 'feature-verdict[cluster]'") from None
    with dask_backend(cluster) as backend:
        yield backend
