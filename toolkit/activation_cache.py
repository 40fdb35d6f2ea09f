"""Activations on disk: one folder a harvest, float16, every byte under a checksum, resumed after an interruption.

The folder's name is a hash of everything that decides its contents. manifest.json holds that, the counts and the
checksums of the small arrays; journal.txt gains a line for each hook and block as it is written, with the SHA-256 of
its rows. A block without a line that matches is computed anew, whether it was never reached or was damaged since, and
comes out the same to the last byte on the same machine. One process at a time works on a folder: a second one waits
until the first is done or dead, and reads what it finds.
"""

import errno
import json
import logging
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from toolkit.corpora import Document
from toolkit.folder_lock import LOCK, FolderLock, lock
from toolkit.runs import write_json
from toolkit.windows import ARRAYS, Counted, Cutting, cut, write_header

FORMAT = 1
"""Raised when the files' layout changes, so that old ones are not read."""
_READ = 1 << 24
_LOG = logging.getLogger(__name__)


def key_of(settings: Mapping[str, Any]) -> str:
    """The name of the folder for some settings: 32 digits of the SHA-256 of them as JSON."""
    return sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def corpus_hash(documents: Iterable[Document]) -> str:
    """SHA-256 over the names and texts of documents, each with its length before it."""
    found = sha256()
    for document in documents:
        for text in (document.name, document.text):
            raw = text.encode("utf-8", "surrogatepass")
            found.update(len(raw).to_bytes(8, "little"))
            found.update(raw)
    return found.hexdigest()


@dataclass
class ActivationCache:
    """One harvest's folder, open for reading what is there and writing what is not."""

    folder: Path
    """Where it lies."""
    counted: Counted
    """What came of cutting the corpus."""
    arrays: dict[str, Int[np.ndarray, "..."]]
    """The small files of `toolkit.windows`, memory-mapped."""
    widths: dict[str, int] = field(default_factory=dict)
    """Numbers in a row of each hook that has any."""
    sums: dict[tuple[str, int], str] = field(default_factory=dict)
    """Checksum of each hook's block that was found whole or has been written."""
    hooks: tuple[str, ...] = ()
    """Those that were asked for."""
    lock: FolderLock | None = field(default=None, repr=False)
    """Keeps other processes out until every block is there."""

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return len(self.arrays["blocks"]) - 1

    def missing(self, hooks: Iterable[str]) -> list[int]:
        """Blocks that some hook lacks."""
        hooks = list(hooks)
        return [block for block in range(self.blocks) if any((hook, block) not in self.sums for hook in hooks)]

    def span(self, block: int) -> tuple[int, int]:
        """First row of a block, and the first row after it."""
        ends = [int(window) for window in self.arrays["blocks"][block : block + 2]]
        first = self.arrays["windows"][:, 2]
        start, stop = (int(first[w]) if w < len(first) else self.counted.rows for w in ends)
        return start, stop

    def write(self, block: int, rows: Mapping[str, Float[np.ndarray, "rows _"]]) -> None:
        """Keep a block of every hook, then say so in the journal."""
        lines = []
        for hook, values in rows.items():
            width = values.shape[1]
            if self.widths.get(hook) != width:
                self._create(hook, width)
            raw = np.ascontiguousarray(values).data
            with self.file(hook).open("r+b") as file:
                file.seek(_head(self.counted.rows, width, at=self.span(block)[0])[1])
                file.write(raw)
            self.sums[hook, block] = sha256(raw).hexdigest()
            lines.append(f"{block} {width} {self.sums[hook, block]} {hook}\n")
        with (self.folder / "journal.txt").open("a") as journal:
            journal.write("".join(lines))
        self._let_others_in()

    def file(self, hook: str) -> Path:
        """Where a hook's rows lie."""
        return self.folder / f"{hook}.npy"

    def _create(self, hook: str, width: int) -> None:
        """Give the file its header and its full length, and leave whatever rows it holds."""
        header, end = _head(self.counted.rows, width, at=self.counted.rows)
        with self.file(hook).open("ab"):
            pass
        with self.file(hook).open("r+b") as file:
            file.write(header)
            file.truncate(end)
        self.widths[hook] = width

    def verify(self, hooks: Iterable[str]) -> None:
        """Take the journal's word for no block: read each, and keep only those whose checksum is right."""
        self.hooks = tuple(hooks)
        if claimed := self._journal(set(self.hooks)):
            self._check(claimed)
        self._let_others_in()

    def _let_others_in(self) -> None:
        """Once nothing is left to be written."""
        if self.lock is not None and not self.missing(self.hooks):
            self.lock.release()

    def _check(self, claimed: dict[tuple[str, int], tuple[int, str]]) -> None:
        """Compare every block that the journal claims, (hook, block) -> (width, checksum), with its rows."""
        for hook in {hook for hook, _ in claimed}:
            width = next(w for (h, _), (w, _) in claimed.items() if h == hook)
            whole = self.file(hook).is_file() and _starts_right(self.file(hook), self.counted.rows, width)
            self.widths[hook] = width
            if not whole:
                self._create(hook, width)
                _LOG.warning("cache %s is damaged: %s has a wrong length or header", self.folder, self.file(hook).name)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(lambda one: self._sum(one[0][0], one[0][1], one[1][0]), claimed.items())
            good = [one for one, seen in zip(claimed.items(), found, strict=True) if one[1][1] == seen]
        self.sums = {name: digest for name, (_, digest) in good}
        if len(good) < len(claimed):
            bad = len(claimed) - len(good)
            _LOG.warning(
                "cache %s is damaged: %d of %d blocks fail their checksum and are rebuilt",
                self.folder, bad, len(claimed),
            )  # fmt: skip

    def _journal(self, hooks: set[str]) -> dict[tuple[str, int], tuple[int, str]]:
        """(hook, block) -> (width, checksum) of every whole line of the journal."""
        path, found = self.folder / "journal.txt", {}
        for line in path.read_bytes().decode("ascii", "replace").splitlines() if path.is_file() else []:
            words = line.split(" ")
            whole = len(words) == 4 and words[0].isdecimal() and words[1].isdecimal() and words[3] in hooks
            if whole and int(words[0]) < self.blocks and int(words[1]) > 0:
                found[words[3], int(words[0])] = (int(words[1]), words[2])
        return found

    def _sum(self, hook: str, block: int, width: int) -> str:
        start, stop = (_head(self.counted.rows, width, at=row)[1] for row in self.span(block))
        return _digest(self.file(hook), start, stop)


def open_cache(
    folder: Path, settings: Mapping[str, Any], documents: Iterable[Document], cutting: Cutting
) -> ActivationCache:
    """The cache in `folder`, its corpus cut into windows where that is not done yet or not whole."""
    folder.mkdir(parents=True, exist_ok=True)
    held = _alone(folder)
    counted = _manifest(folder, settings)
    if counted is None:
        for path in folder.iterdir():
            if path.name != LOCK:
                path.unlink()
        counted = cut(folder, documents, cutting)
        sums = {name: _digest(folder / f"{name}.npy") for name in ARRAYS}
        content = {"settings": dict(settings), "counted": asdict(counted), "sha256": sums}
        write_json(folder / "manifest.json", {**content, "checksum": key_of(content)})
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    return ActivationCache(folder, counted, arrays, lock=held)


def _alone(folder: Path) -> FolderLock | None:
    """The folder's lock, as soon as it can be had."""
    try:
        held = lock(folder)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return None  # to be read only: that a block is missing is told where it would be written
    if held is None:
        _LOG.warning("cache %s is being written by another command: waiting for it", folder)
        held = lock(folder, wait=True)
    return held


def _manifest(folder: Path, settings: Mapping[str, Any]) -> Counted | None:
    """The counts of a manifest whose small files are whole; None where there is none, or none to be trusted."""
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        checksum = content.pop("checksum")
        if checksum != key_of(content) or content["settings"] != dict(settings):
            raise ValueError("manifest.json")
        for name, expected in content["sha256"].items():
            if _digest(folder / f"{name}.npy") != expected:
                raise ValueError(f"{name}.npy")
        return Counted(**content["counted"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = str(error) if isinstance(error, ValueError) and str(error).endswith((".npy", ".json")) else path.name
        _LOG.warning("cache %s is damaged: %s fails its checksum; all of it is rebuilt", folder, what)
        return None


def _head(rows: int, width: int, *, at: int = 0) -> tuple[bytes, int]:
    """A hook file's header, and where row `at` begins behind it."""
    header = BytesIO()
    write_header(header, (rows, width), np.float16)
    return header.getvalue(), len(header.getvalue()) + 2 * width * at


def _starts_right(path: Path, rows: int, width: int) -> bool:
    header, end = _head(rows, width, at=rows)
    with path.open("rb") as file:
        return path.stat().st_size == end and file.read(len(header)) == header


def _digest(path: Path, start: int = 0, stop: int | None = None) -> str:
    """SHA-256 of a file's bytes from `start` to `stop`, read a few megabytes at a time."""
    found = sha256()
    with path.open("rb") as file:
        file.seek(start)
        left = (path.stat().st_size if stop is None else stop) - start
        while left > 0 and (part := file.read(min(_READ, left))):
            found.update(part)
            left -= len(part)
    return found.hexdigest()
