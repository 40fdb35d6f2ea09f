"""A run folder: configuration, seeds, versions, metrics, tensors. Whole or absent; a killed run can be resumed.

While it works a run lives in `<out>/<name>/.<id>.unfinished/`; `finish` renames that to `<out>/<name>/<id>/`.
"""

import json
import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

from toolkit.configs import differing
from toolkit.errors import DivergenceError, UserError

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

    def checkpoint(self, stage: str, *, every: float = 10.0) -> "FileCheckpoint":
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
        """Write result.json and tensors.safetensors, drop checkpoints and give the folder its name.

        `last` is called with the result before that, to write what is made from it.
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
            "seconds": round(time.time() - self.started, 3),
            "metrics": plain(metrics),
            "checks": checks,
        }
        write_json(self.folder / "result.json", result)
        if last:
            last(result)
        for path in self.folder.glob("checkpoint_*"):
            path.unlink()
        done = self.folder.with_name(_number(self.folder))
        self.folder.rename(done)
        return done


@dataclass
class FileCheckpoint:
    """The state of one training, in a safetensors file that is replaced whole."""

    path: Path
    """The file."""
    every: float
    """Least number of seconds between two saves."""
    last: float = -math.inf
    """When it was last written; the first state is kept at once."""

    def load(self) -> dict[str, Tensor] | None:
        """The state last saved, or None.

        Raises:
            UserError: the file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not self.path.exists():
            return None
        try:
            return load_file(self.path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"checkpoint {self.path} is damaged ({error}): delete its folder and start anew") from error

    def save(self, state: Callable[[], dict[str, Tensor]]) -> None:
        """Write the state when `every` seconds have passed since the last time, and only if it is finite."""
        from safetensors.torch import save_file

        if time.monotonic() - self.last < self.every:
            return
        kept = {key: value.contiguous().cpu() for key, value in state().items()}
        if not all(bool(value.isfinite().all()) for value in kept.values()):
            return
        temporary = self.path.with_suffix(".tmp")
        save_file(kept, temporary)
        temporary.replace(self.path)
        self.last = time.monotonic()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a failed write (a full disk, a folder taken away) or a divergence into one line; checkpoints stay.

    Raises:
        UserError: the operating system refused a write, or training diverged.
    """
    from safetensors import SafetensorError

    try:
        yield
    except DivergenceError as error:
        kept = (
            "the last good checkpoint is kept in" if any(folder.glob("checkpoint_*")) else "nothing was reached yet in"
        )
        raise UserError(f"{error}; {kept} {folder}") from error
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}; make room and use --resume") from error
    except SafetensorError as error:
        raise UserError(f"cannot write to {folder}: {error}; make room and use --resume") from error


def open_run(out: str, name: str, config: dict[str, Any], *, resume: bool) -> Run:
    """Make a run's folder, or with `resume` take up the newest unfinished one of this name.

    Raises:
        UserError: the folder cannot be written, or the run to be resumed has another configuration (the settings
            that differ are named).
    """
    parent = Path(out) / name
    unfinished = [folder for folder in parent.glob(f".*{_UNFINISHED}") if _number(folder).isdigit()]
    if resume and unfinished:
        return _reopened(max(unfinished, key=lambda folder: int(_number(folder))), name, config)
    started = time.time()
    folder = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = _claim(parent)
        write_json(folder / "run.json", {"config": config, "started": started})
    except OSError as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"cannot write to {parent}: {error.strerror}; choose another folder with --out") from error
    return Run(name, folder, config, started)


def _reopened(folder: Path, name: str, config: dict[str, Any]) -> Run:
    try:
        saved = json.loads((folder / "run.json").read_text())
        before, started = dict(saved["config"]), float(saved["started"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"cannot resume {folder}: its run.json is missing or damaged; delete the folder") from error
    changed = differing(before, config)
    if changed:
        raise UserError(f"cannot resume {folder} with another configuration: {'; '.join(changed)}")
    return Run(name, folder, config, started)


def _number(folder: Path) -> str:
    """The number in a run folder's name, finished or not."""
    return folder.name.removeprefix(".").removesuffix(_UNFINISHED)


def _claim(parent: Path) -> Path:
    """Take the next free number; making the folder is the claim, so two commands cannot share one."""
    while True:
        taken = [_number(p) for p in parent.iterdir()]
        number = max((int(n) for n in taken if n.isdigit()), default=0) + 1
        folder = parent / f".{number:03d}{_UNFINISHED}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            continue


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON to a temporary name and rename it."""
    text = json.dumps(value, indent=2, allow_nan=False)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


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
