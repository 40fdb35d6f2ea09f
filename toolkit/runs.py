"""A run folder: configuration, seeds, versions, metrics, tensors. Whole or absent; a killed run can be resumed.

While it works a run lives in `<out>/<name>/.<id>.unfinished/`; `finish` renames that to `<out>/<name>/<id>/`.
"""

import errno
import json
import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor

from toolkit.checkpoints import FileCheckpoint
from toolkit.configs import differing
from toolkit.errors import DivergenceError, UserError
from toolkit.folder_lock import LOCK, FolderLock, let_go_on_failure, take

_UNFINISHED = ".unfinished"
_RECORDED = (
    "feature-verdict", "torch", "numpy", "numba", "scikit-learn", "umap-learn", "sae-lens", "transformer-lens",
    "safetensors",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run, unfinished until `finish`."""

    name: str
    """What was run; the folder's parent."""
    folder: Path
    """Where it is being written."""
    config: dict[str, Any]
    """Everything that decides its numbers."""
    started: float
    """Seconds since the epoch."""
    lock: FolderLock = field(repr=False, compare=False)
    """Keeps other processes out of the folder."""
    began: float = field(default_factory=time.monotonic, repr=False, compare=False)
    """When this process took it up, by a clock that nobody sets."""

    def checkpoint(self, stage: str, *, every: float = 10.0) -> FileCheckpoint:
        """Where one stage of the run keeps its state, at most every `every` seconds."""
        return FileCheckpoint(self.folder / f"checkpoint_{stage}.safetensors", every)

    def finish(
        self,
        metrics: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        checks: list[dict[str, Any]],
        *,
        last: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> Path:
        """Write result.json and tensors.safetensors, give the folder its name and drop checkpoints.

        `last` is called with the result before the folder has its name, to write what is made from it.
        """
        from safetensors.torch import save_file

        save_file(
            {key: value.contiguous().cpu() for key, value in tensors.items()}, self.folder / "tensors.safetensors"
        )
        result = {
            "name": self.name,
            "config": self.config,
            "seeds": [self.config["seed"]],
            "versions": versions(),
            **commit(),
            "started": datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self.began, 3),
            "metrics": plain(metrics),
            "checks": checks,
        }
        write_json(self.folder / "result.json", result)
        if last:
            last(result)
        done = self.folder.with_name(_number(self.folder))
        self.folder.rename(done)
        # Only now: a run killed before it has its name goes on from them.
        for path in (*done.glob("checkpoint_*"), done / LOCK):
            path.unlink(missing_ok=True)
        self.lock.release()
        return done

    def drop(self) -> None:
        """Leave nothing behind: neither the folder nor one above it that holds nothing else."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.release()
        with suppress(OSError):
            self.folder.parent.rmdir()


@contextmanager
def writing(folder: Path, *, then: str = "use --resume") -> Iterator[None]:
    """Turn a failed write (a full disk, a folder taken away) or a divergence into one line; checkpoints stay.

    Args:
        then: what goes on from there.

    Raises:
        UserError: the operating system refused a write, or training diverged.
    """
    from safetensors import SafetensorError

    try:
        with let_go_on_failure(folder):
            yield
    except DivergenceError as error:
        kept = (
            "the last good checkpoint is kept in" if any(folder.glob("checkpoint_*")) else "nothing was reached yet in"
        )
        raise UserError(f"{error}; {kept} {folder}") from error
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}; make room and {then}") from error
    except SafetensorError as error:
        raise UserError(f"cannot write to {folder}: {error}; make room and {then}") from error


def open_run(out: str, name: str, config: dict[str, Any], *, resume: bool) -> Run:
    """Make a run's folder, or with `resume` take up the newest unfinished one of this name.

    Raises:
        UserError: the folder cannot be written, or the run to be resumed is being written by another process or has
            another configuration (the settings that differ are named).
    """
    parent = Path(out) / name
    unfinished = [folder for folder in parent.glob(f".*{_UNFINISHED}") if _number(folder).isdecimal()]
    if resume and unfinished:
        try:
            return _reopened(max(unfinished, key=lambda folder: int(_number(folder))), name, config)
        except FileNotFoundError:  # another process has finished it since
            return open_run(out, name, config, resume=resume)
    started = time.time()
    try:
        folder, held = _claim(parent, {"config": config, "started": started})
    except OSError as error:
        raise UserError(f"cannot write to {parent}: {error.strerror}; choose another folder with --out") from error
    return Run(name, folder, config, started, held)


def _reopened(folder: Path, name: str, config: dict[str, Any]) -> Run:
    try:
        held = take(folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another folder with --out") from error
    with let_go_on_failure(folder):
        try:
            saved = json.loads((folder / "run.json").read_text())
            before, started = dict(saved["config"]), float(saved["started"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"cannot resume {folder}: its run.json is missing or damaged; delete the folder") from error
        if changed := differing(before, config):
            raise UserError(f"cannot resume {folder} with another configuration: {'; '.join(changed)}")
        return Run(name, folder, config, started, held)


def _number(folder: Path) -> str:
    """The number in a run folder's name, finished or not."""
    return folder.name.removeprefix(".").removesuffix(_UNFINISHED)


def _claim(parent: Path, record: dict[str, Any]) -> tuple[Path, FolderLock]:
    """Take the next free number with a folder that is locked and has its run.json from the first moment on.

    It is renamed into place, which fails where another command was first: two cannot share a number, and a killed one
    leaves no folder that cannot be resumed.
    """
    parent.mkdir(parents=True, exist_ok=True)
    begun = parent / f".{uuid4().hex}.begun"
    begun.mkdir()
    try:
        held = take(begun)
        write_json(begun / "run.json", record)
        return _numbered(begun, parent), held
    except BaseException:
        shutil.rmtree(begun, ignore_errors=True)
        with suppress(OSError):
            parent.rmdir()
        raise


def _numbered(begun: Path, parent: Path) -> Path:
    while True:
        taken = [_number(path) for path in parent.iterdir()]
        number = max((int(n) for n in taken if n.isdecimal()), default=0) + 1
        folder = parent / f".{number:03d}{_UNFINISHED}"
        try:
            begun.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            continue
        if not (parent / _number(folder)).exists():
            return folder
        folder.rename(begun)  # a run of this number finished between the list and the claim


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON to a temporary name and rename it."""
    text = json.dumps(value, indent=2, allow_nan=False, default=_scalar)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _scalar(value: Any) -> Any:
    """A number of numpy or torch as Python's."""
    if getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON value")


def plain(value: Any) -> Any:
    """JSON values: NaN and infinity become null, tuples lists."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def versions() -> dict[str, str]:
    """Versions of Python's packages that decide numbers or formats."""
    found = {}
    for package in _RECORDED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> dict[str, Any]:
    """The toolkit's own commit and whether its files differ from it; null where it is not a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(git("status", "--porcelain").strip())}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
