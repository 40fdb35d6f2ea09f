"""Text corpora, as documents: files, folders, NLTK's corpora, the hub's data sets; and how often each token occurs.

A source is a path or a name: `text.txt`, `text.txt.gz`, `trees.conllu`, `trees.conllu.gz`, a folder of these,
`nltk:NAME`, `nltk:NAME/PATTERN` (`nltk:genesis/english-*`), `hf:NAME[:CONFIG][:SPLIT]`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.conllu import read_conllu
from toolkit.errors import UserError, require
from toolkit.text_files import CONLLU, TEXT, decode, files_in

END = "<|endoftext|>"
"""A line that is exactly this stands between two documents of a text file."""

_CHUNK = 100_000
_HEADING = re.compile(r" ?= (?!= )(.+?) = ?")


@dataclass(frozen=True)
class Document:
    """A text that stands by itself: what is resampled and split as a whole, because its parts are dependent."""

    name: str
    """Unique in its corpus: `movie_reviews/neg/cv000_29416.txt`."""
    text: str
    """Its text; a line ends in a line feed only."""


def documents(source: str | Path) -> list[Document]:
    """A corpus as documents, in the order of its files and of the text in them.

    - A text file: the lines `<|endoftext|>` separate documents; without them a heading of WikiText's first level
      (` = Title = ` between blank lines) begins one; without these the file is one document.
    - A CoNLL-U file: one document for each `# newdoc`; sentences are joined by a blank line before `# newpar`, else
      by a space, or by nothing after `SpaceAfter=No`.
    - A folder: its files of these kinds, sorted by path, those in sub-folders too; hidden ones and blank text files
      are left out.
    - `nltk:NAME[/PATTERN]`: one document for each file id that the pattern takes, from `nltk.data.path`; nothing is
      downloaded. Running text is taken as it stands; where a corpus has words only, see `nltk_corpora.text`.
    - `hf:NAME[:CONFIG][:SPLIT]`: the column `text`, one document a row (split `train` unless named).

    Raises:
        UserError: the source is missing, damaged, not UTF-8, has no text, or cannot be had offline.
    """
    kind, _, name = str(source).partition(":")
    if kind == "nltk":
        from toolkit import nltk_corpora

        found = [Document(*pair) for pair in nltk_corpora.texts(name)]
    elif kind == "hf":
        found = _hub_documents(name)
    elif Path(source).is_dir():
        found = _folder_documents(Path(source))
    else:
        expected = "expected a file, a folder, nltk:NAME or hf:NAME"
        require(Path(source).is_file(), f"no file or folder at {source}: {expected}")
        found = list(_file_documents(Path(source), Path(source).name))
    require(bool(found), f"{source} holds no text: expected at least one document that is not blank")
    return found


def _folder_documents(folder: Path) -> list[Document]:
    """The documents of a folder's files, named by their path in it."""
    names = files_in(folder, (*TEXT, *CONLLU))
    return [document for name in names for document in _file_documents(folder / name, name)]


def _file_documents(path: Path, name: str) -> Iterator[Document]:
    """The documents of one file; a part of a file is named after it, with its number and title."""
    require(path.suffix != ".csv", f"{path} is a table: read it with labelled.read_labelled, which asks for columns")
    if path.name.endswith(CONLLU):
        for title, text in read_conllu(path).documents():
            yield Document(f"{name}/{title}" if title else name, text)
        return
    parts = _parts(decode(path).replace("\r\n", "\n"))
    whole = len(parts) == 1
    for number, (title, text) in enumerate(parts, start=1):
        if text.strip():
            yield Document(name if whole else f"{name}/{number} {title}".rstrip(), text)


def _parts(text: str) -> list[tuple[str, str]]:
    """(title, text) of each document in a file."""
    lines = text.split("\n")
    if END in lines:
        starts = [0, *(i + 1 for i, line in enumerate(lines) if line == END)]
        ends = [*(i - 1 for i in starts[1:]), len(lines)]
        return [("", "\n".join(lines[start:end])) for start, end in zip(starts, ends, strict=True)]
    titles = {i: title for i in range(len(lines)) if (title := _title(lines, i))}
    starts = sorted(titles)
    if not starts or any(line.strip() for line in lines[: starts[0]]):
        starts = [0, *starts]
    ends = [*starts[1:], len(lines)]
    return [(titles.get(start, ""), "\n".join(lines[start:end])) for start, end in zip(starts, ends, strict=True)]


def _title(lines: list[str], index: int) -> str:
    """The title a line gives, or "": some of WikiText's legends look alike but do not stand between blank lines."""
    match = _HEADING.fullmatch(lines[index])
    around = lines[max(index - 1, 0) : index] + lines[index + 1 : index + 2]
    return match[1] if match and not any(line.strip() for line in around) else ""


def _hub_documents(name: str) -> list[Document]:
    """Rows of a data set in the hub's cache or, if the network may be used, on the hub."""
    import datasets

    path, config, split = (*name.split(":", 2), "", "")[:3]
    require(bool(path), "hf: names no data set: expected hf:NAME[:CONFIG][:SPLIT]")
    try:
        rows = datasets.load_dataset(path, config or None, split=split or "train")
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"no data set hf:{name}, neither in the cache nor from the hub: {reason}") from error
    columns = rows.column_names
    require("text" in columns, f"hf:{name} has no column 'text' (it has {', '.join(columns)}): name a corpus of text")
    texts = [(i, str(text or "").replace("\r\n", "\n")) for i, text in enumerate(rows["text"], start=1)]
    return [Document(f"{path}/{i}", text) for i, text in texts if text.strip()]


def read_text(path: str | Path) -> str:
    """The text of a .txt or .txt.gz file.

    Raises:
        UserError: the file is missing, not readable as UTF-8, or empty.
    """
    text = decode(path)
    require(bool(text.strip()), f"{path} is empty: expected text to count tokens in")
    return text


def unigram(text: str, tokenizer: Any, vocabulary: int, *, smoothing: float = 0.5) -> Float[Tensor, " tokens"]:
    """Smoothed unigram probabilities (count + smoothing) / total, one for each row of the embedding.

    Half a count a token (Jeffreys' prior) keeps unseen tokens in play.
    """
    counts = np.zeros(vocabulary)
    for start in range(0, len(text), _CHUNK):
        ids = tokenizer.encode(text[start : start + _CHUNK], add_special_tokens=False)
        counts += np.bincount(ids, minlength=vocabulary)[:vocabulary]
    return torch.from_numpy((counts + smoothing) / (counts + smoothing).sum()).float()


def effective_size(weights: Float[Tensor, " rows"]) -> float:
    """(sum p)^2 / sum p^2: how many equally weighted rows the weights are worth (Kish 1965)."""
    return (weights.double().sum().square() / weights.double().square().sum()).item()
