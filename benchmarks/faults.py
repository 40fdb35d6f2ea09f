"""Every long command, killed at random moments and resumed, against the same command left alone.

python -m benchmarks.faults [NAME ...] [--kills N]    not among the other benchmarks: it compares numbers, not times

A command and all its workers get SIGKILL at a uniformly drawn share of the time it takes alone, and are started again
with --resume, until it has been killed often enough; a command that comes to its end before is compared and begins
anew. At the end everything that it wrote must be what the undisturbed one wrote: the same files, and in them the same
tensors, rows and numbers, bit for bit, but for times, versions and drawings.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarks.timing import show
from toolkit.commands import exit_code
from toolkit.errors import require, unknown

ROOT = Path(__file__).parents[1]
KILLS = 10
OFTEN = 0.2
"""Seconds between two checkpoints, in place of 10 to 30: trainings of a few seconds would hardly be kept."""
PROGRAM = f"""
import sys
from importlib import import_module
from toolkit import pretrain_folder, runs
checkpoint = runs.Run.checkpoint
runs.Run.checkpoint = lambda run, stage: checkpoint(run, stage, every={OFTEN})
pretrain_folder._EVERY = {OFTEN}
sys.exit(import_module(sys.argv[1]).main(sys.argv[2:]))
"""
HARVEST = """
import sys
from pathlib import Path
from toolkit import windows
windows.BLOCK_BATCHES = 2
from toolkit.activations import harvest
from toolkit.corpora import documents
from toolkit.language import load_model
hooks = [f"blocks.{i}.hook_resid_post" for i in range(4)]
harvest(load_model(), documents(sys.argv[1]), hooks, batch=512, context=64, cache=Path(sys.argv[2]))
"""
UNEQUAL = ("seconds", "resumed", "started", "versions", "commit", "dirty")
"""What result.json and training.json say of a run beside its numbers."""


@dataclass(frozen=True)
class Long:
    """A command that takes long, at a size at which it does not."""

    name: str
    words: tuple[str, ...]
    model: bool = False  # --out is a model's folder, not one of runs

    def line(self, out: Path, *, resume: bool) -> list[str]:
        """What starts it."""
        if self.name == "harvest":  # it finds by itself what is there
            return [sys.executable, "-c", HARVEST, *self.words, str(out)]
        more = ["--out", str(out / "model" if self.model else out), *(["--resume"] if resume else [])]
        return [sys.executable, "-c", PROGRAM, *self.words, "--quiet", *more]


@dataclass
class Counts:
    """What happened to one command."""

    seconds: float
    kills: int = 0
    resumed: int = 0
    ended: int = 0
    differences: tuple[str, ...] = ()


def commands(inputs: Path) -> list[Long]:
    """All of them, cheapest first."""
    text, labels = write_text(inputs / "text"), write_labels(inputs / "labels.csv")
    sae = ("--width", "128", "--k", "8", "--steps", "800", "--batch", "256")
    at = ("--hook", "blocks.2.hook_resid_post", "--corpus")
    sizes = ("--layers", "1", "--width", "32", "--heads", "2", "--context", "64", "--vocabulary", "300", "--batch", "8")
    toy = ("--instances", "3", "--toy-steps", "2000", "--toy-batch", "64", "--steps", "1500", "--batch", "64")
    run = ("experiments.__main__", "run", "--scale", "smoke", "--workers", "2")
    return [
        Long("embedding SAE", ("toolkit.sae_fit", "--target", "embedding", *sae)),
        Long("toy SAEs", ("toolkit.sae_fit", "--target", "tms", *toy)),
        Long("harvest", (text,)),
        Long("pretraining", ("toolkit.pretrain", "--corpus", text, *sizes, "--steps", "120"), model=True),
        Long("activation SAE", ("toolkit.sae_fit", "--target", "activations", *at, text, *sae)),
        Long("toy sweep", (*run, "pentagon")),
        Long("dictionary learning", (*run, "equal-bits")),
        Long("calibration", ("controls.__main__", "calibrate", "--world", "token-identity", "--seeds", "4",
                             "--rows", "1200", "--workers", "2")),
        Long("audit", ("controls.__main__", "audit", *at, labels, "--labels", "label=many", "--budget", "quick",
                       "--workers", "2")),
    ]  # fmt: skip


def report(names: list[str], kills: int) -> int:
    """Print a table; the number of commands whose numbers differ."""
    rows, bad = [], 0
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        every = commands(Path(folder))
        for name in names:
            if name not in [one.name for one in every]:
                raise unknown("command", name, [one.name for one in every])
        for command in [one for one in every if one.name in names or not names]:
            found = injected(command, Path(folder) / command.name.replace(" ", "-"), kills=kills, seed=0)
            equal = "yes" if not found.differences else "NO: " + "; ".join(found.differences)
            bad += bool(found.differences)
            numbers = [str(n) for n in (found.kills, found.resumed, found.ended)]
            rows.append((command.name, f"{found.seconds:.0f} s", *numbers, equal))
            print(*rows[-1], sep="  ", flush=True)
    show("killed and resumed", ("command", "alone", "kills", "resumed", "ended and compared", "equal"), rows)
    return bad


def injected(command: Long, folder: Path, *, kills: int, seed: int) -> Counts:
    """Run a command alone, then kill and resume it.

    Raises:
        RuntimeError: it ended by itself, and not well.
    """
    began = time.monotonic()
    whole = folder / "whole"
    _attempt(command, whole, None, resume=False)
    found, draw = Counts(time.monotonic() - began), random.Random(seed)
    out = folder / "killed-0"
    while found.kills < kills or out.exists():
        after = draw.uniform(0.0, found.seconds) if found.kills < kills else None
        resume = _has_begun(out)
        killed = not _attempt(command, out, after, resume=resume)
        found.kills += killed
        found.resumed += resume
        if not killed or _is_whole(out):
            found.ended += 1
            found.differences += tuple(differences(whole, out))
            if found.kills >= kills:
                break
            out = folder / f"killed-{found.ended}"
        else:
            out.mkdir(parents=True, exist_ok=True)
    return found


def _has_begun(out: Path) -> bool:
    """Whether there is anything to go on from."""
    return any(out.glob("**/*"))


def _is_whole(out: Path) -> bool:
    """Whether a run has its name: killed while it said so, it is not to be resumed."""
    whole = [path for name in ("result.json", "training.json") for path in out.glob(f"**/{name}")]
    return any(not path.parent.name.endswith(".unfinished") for path in whole)


def _attempt(command: Long, out: Path, after: float | None, *, resume: bool) -> bool:
    """Start a command and kill it with its workers after some seconds; True where it came to its end before."""
    environment = {**os.environ, "GOMP_SPINCOUNT": "2000", "PYTHONPATH": str(ROOT), **_threads()}
    process = subprocess.Popen(
        command.line(out, resume=resume),
        cwd=ROOT, env=environment, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False
    if process.returncode not in (0, 1):  # 1: a check of an experiment failed, as it may at this size
        raise RuntimeError(f"{command.name} ended with {process.returncode}: {said[-2000:]}")
    return True


def _threads() -> dict[str, str]:
    """As many threads for torch as for numba: its first parallel kernel else changes torch's number, and so rounding.

    A run resumed when no step is left has no such kernel before its sums.
    """
    threads = os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count() or 1)
    return {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}


def differences(whole: Path, other: Path) -> list[str]:
    """Files that one of two folders lacks, or whose numbers differ."""
    files, others = _files(whole), _files(other)
    missing = [f"{name} is in one only" for name in sorted(files ^ others)]
    return missing + [f"{name} differs" for name in sorted(files & others) if not _same(whole / name, other / name)]


def _files(folder: Path) -> set[str]:
    """What a run leaves; not what a kill leaves just before the folder is made or just after it has its name."""
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return {
        str(path)
        for path in found
        if path.name != ".lock" and path.suffix != ".tmp" and not any(part[-6:] == ".begun" for part in path.parts)
    }


def _same(one: Path, other: Path) -> bool:
    if one.suffix == ".safetensors":
        first, second = load_file(one), load_file(other)
        return first.keys() == second.keys() and all(_bits(first[name]) == _bits(second[name]) for name in first)
    if one.suffix == ".npy":
        return _bits(np.load(one)) == _bits(np.load(other))
    if one.suffix == ".json" and one.name not in ("run.json", "manifest.json"):
        return bool(_numbers(json.loads(one.read_text())) == _numbers(json.loads(other.read_text())))
    return True


def _bits(values: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return str(values.dtype), values.shape, values.tobytes()


def _numbers(value: Any) -> Any:
    """JSON without what differs from one run to the next."""
    if isinstance(value, dict):
        return {key: _numbers(inner) for key, inner in value.items() if key not in UNEQUAL}
    return [_numbers(inner) for inner in value] if isinstance(value, list) else value


def write_text(folder: Path) -> str:
    """Documents of invented words, some far more frequent than others; returns their folder."""
    draw, letters = random.Random(0), "abcdefghijklmnop"
    words = ["".join(draw.choice(letters) for _ in range(draw.randint(2, 7))) for _ in range(300)]
    folder.mkdir(parents=True)
    for number in range(40):
        chosen = [words[min(int(draw.paretovariate(0.8)) - 1, 299)] for _ in range(300)]
        (folder / f"{number:02d}.txt").write_text(" ".join(chosen))
    return str(folder)


def write_labels(file: Path) -> str:
    """Short texts with a label each; returns the file."""
    ends = {"one": ("dog", "king", "house", "friend"), "many": ("dogs", "kings", "houses", "friends")}
    ways = ("old", "new", "good", "last") * 4
    lines = [f"the {way} {word},{label}" for label in ends for word in ends[label] for way in ways]
    file.write_text("text,label\n" + "\n".join(lines) + "\n")
    return str(file)


def main(argv: Sequence[str] | None = None) -> int:
    """Kill and resume the named commands, or all; 1 where numbers differ, 2 after a mistake."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("names", nargs="*", help="such as 'toy SAEs'; without any, all")
    parser.add_argument("--kills", type=int, default=KILLS)
    options = parser.parse_args(argv)
    return exit_code(lambda: _work(options.names, options.kills), less="close other programs", kept="")


def _work(names: list[str], kills: int) -> int:
    require(kills >= 1, f"--kills must be at least 1, got {kills}")
    return 1 if report(names, kills) else 0


if __name__ == "__main__":
    sys.exit(main())
