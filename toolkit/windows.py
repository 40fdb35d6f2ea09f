"""Documents cut into windows of tokens, written to files as they are read; batches of windows, a pure function of them.

ids.npy         every token of every document, one after another
windows.npy     a line a window: its first place in ids, its length, the row of its first token that is kept
blocks.npy      the first window of each block, and the end: what is harvested, checked and resumed as one
documents.npy, positions.npy, tokens.npy    of each row that is kept: document, place in it, token
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from toolkit.corpora import Document

ARRAYS = ("ids", "windows", "blocks", "documents", "positions", "tokens")
"""The files, each `<name>.npy`."""
BLOCK_BATCHES = 4
"""Batches in a block: enough to sort its windows by length, few enough that an interruption costs little."""
_CHARACTERS = 200_000


@dataclass(frozen=True)
class Cutting:
    """How text becomes windows."""

    tokenizer: Any
    """A Hugging Face tokenizer."""
    context: int
    """Tokens in a window at most, its beginning token included."""
    batch: int
    """Tokens in a forward pass at most, padding included; a single window may be longer."""
    rows: int = 0
    """Stop after the document in which this many rows are reached; 0: never."""

    @property
    def beginning(self) -> int | None:
        """The token put before every window: the tokenizer's beginning of sequence, where it has one."""
        return self.tokenizer.bos_token_id

    @property
    def lead(self) -> int:
        """Tokens put before every window: 0 or 1."""
        return 0 if self.beginning is None else 1

    @property
    def special(self) -> Int[np.ndarray, " tokens"]:
        """Tokens that stand for no text; their rows are masked."""
        return np.array(sorted(self.tokenizer.all_special_ids), dtype=np.int32)

    def settings(self) -> dict[str, Any]:
        """Everything that decides the windows and their batches, as JSON values."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        table = backend.to_str() if backend is not None else repr(sorted(self.tokenizer.get_vocab().items()))
        return {
            "tokenizer": sha256(table.encode()).hexdigest(),
            "beginning": self.beginning,
            "special": self.special.tolist(),
            "context": self.context,
            "batch": self.batch,
            "rows": self.rows,
        }


@dataclass
class Counted:
    """What came of cutting a corpus."""

    documents: int = 0
    """Documents read, empty ones too."""
    windows: int = 0
    """Windows of them."""
    rows: int = 0
    """Tokens kept, each with a row of activations."""
    special: int = 0
    """Tokens masked: special ones in the text, and one before each window."""
    padding: int = 0
    """Places of padding in all batches."""


class _Growing:
    """A .npy file that is appended to; its length goes into the header, for which numpy leaves room, at the end."""

    def __init__(self, path: Path, dtype: str, width: int | None = None) -> None:
        self.file: BufferedWriter = path.open("wb")
        self.dtype, self.tail, self.count = np.dtype(dtype), (() if width is None else (width,)), 0
        self._head()

    def _head(self) -> None:
        write_header(self.file, (self.count, *self.tail), self.dtype)

    def add(self, values: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(values, dtype=self.dtype).data)
        self.count += len(values)

    def close(self) -> None:
        self.file.seek(0)
        self._head()
        self.file.close()


def write_header(file: Any, shape: tuple[int, ...], dtype: Any) -> None:
    """A .npy header; of one length whatever the number of rows."""
    described = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)


class _Writer:
    """The files of a corpus being cut."""

    def __init__(self, folder: Path, cutting: Cutting) -> None:
        self.cutting, self.counted = cutting, Counted()
        self.special, self.lead = cutting.special, cutting.lead
        kinds = {"windows": ("<i8", 3), "blocks": ("<i8", None)}
        self.files = {name: _Growing(folder / f"{name}.npy", *kinds.get(name, ("<i4", None))) for name in ARRAYS}
        self.files["blocks"].add(np.zeros(1))
        self.pending: list[int] = []  # lengths of the windows of the open block
        self.size = 0  # and their sum

    def document(self, ids: np.ndarray) -> None:
        """Append one document's windows and rows."""
        kept = ~np.isin(ids, self.special)
        rows_before = np.concatenate([[0], kept.cumsum()])
        step = self.cutting.context - self.lead
        starts = np.arange(0, len(ids), step)
        lengths = np.minimum(step, len(ids) - starts)
        first = self.files["ids"].count
        self.files["windows"].add(
            np.stack([first + starts, lengths, self.counted.rows + rows_before[starts]], axis=1)  # (windows, 3)
        )
        self.files["ids"].add(ids)
        self.files["documents"].add(np.full(int(kept.sum()), self.counted.documents))
        self.files["positions"].add(np.flatnonzero(kept))
        self.files["tokens"].add(ids[kept])
        for length in lengths.tolist():
            self._window(length + self.lead)
        self.counted.documents += 1
        self.counted.rows += int(kept.sum())
        self.counted.special += len(ids) - int(kept.sum()) + self.lead * len(starts)

    def _window(self, length: int) -> None:
        if self.pending and self.size + length > BLOCK_BATCHES * self.cutting.batch:
            self._close_block()
        self.pending.append(length)
        self.size += length
        self.counted.windows += 1

    def _close_block(self) -> None:
        lengths = np.array(self.pending)
        places = sum(len(b) * int(lengths[b].max()) for b in batches_of(lengths, self.cutting.batch))
        self.counted.padding += places - self.size
        self.files["blocks"].add(np.array([self.counted.windows]))
        self.pending, self.size = [], 0

    def close(self) -> Counted:
        """Finish the files."""
        if self.pending:
            self._close_block()
        for file in self.files.values():
            file.close()
        return self.counted


def cut(folder: Path, documents: Iterable[Document], cutting: Cutting) -> Counted:
    """Write the windows of a corpus to `folder`, some hundred thousand characters at a time."""
    writer = _Writer(folder, cutting)
    try:
        for texts in _chunks(documents):
            for ids in cutting.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
                if cutting.rows and writer.counted.rows >= cutting.rows:
                    return writer.counted
                writer.document(np.asarray(ids, dtype=np.int32))
    finally:
        writer.close()
    return writer.counted


def _chunks(documents: Iterable[Document]) -> Iterator[list[str]]:
    texts: list[str] = []
    size = 0
    for document in documents:
        texts.append(document.text)
        size += len(document.text)
        if size >= _CHARACTERS:
            yield texts
            texts, size = [], 0
    if texts:
        yield texts


def batches_of(lengths: Int[np.ndarray, " windows"], batch: int) -> list[Int[np.ndarray, " some"]]:
    """Windows by falling length, as many at a time as fit into `batch` places, padding included."""
    order, found, at = np.argsort(-lengths, kind="stable"), [], 0
    while at < len(order):
        count = max(1, batch // int(lengths[order[at]]))
        found.append(order[at : at + count])
        at += count
    return found
