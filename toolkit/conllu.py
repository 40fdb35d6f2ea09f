"""Sentences in CoNLL-U, the format of Universal Dependencies (de Marneffe et al. 2021), with each word's place.

Words are the syntactic words, one a line. Where several share a written form (a range such as 1-2) and spell it
when joined ("do" + "n't"), each has its part of it; where they do not ("de" + "el" for "del"), each has all of it.
Empty nodes (1.1) stand for nothing written and are left out.
"""

import re
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

from toolkit.errors import UserError, require
from toolkit.text_files import decode

_COLUMNS = 10
_NUMBER = r"\d{1,9}"
_ID = re.compile(rf"({_NUMBER})(?:([-.])({_NUMBER}))?")
_NEWDOC = re.compile(r"#\s*newdoc(?:\s+id\s*=\s*(.*))?")


class Word(NamedTuple):
    """One syntactic word."""

    form: str
    """As the annotation has it."""
    start: int
    """Its first character in the sentence's text."""
    end: int
    """One past its last character."""
    upos: str
    """Universal part of speech; "" where there is none."""
    xpos: str
    """The treebank's own tag; "" where there is none."""
    features: dict[str, str]
    """Morphology: {"Number": "Sing"}."""
    head: int
    """Index of its head in the sentence, from 0; -1 for the root and where no head is given."""
    relation: str
    """Relation to the head; "" where there is none."""


@dataclass(frozen=True)
class Sentence:
    """One sentence."""

    text: str
    """As written: the comment `# text`, or the forms and `SpaceAfter`."""
    words: tuple[Word, ...]
    """In order."""
    document: str
    """Id of its document: as `# newdoc` gives it, or a number; "" before the first."""
    paragraph: bool
    """It begins a paragraph."""
    glued: bool
    """No space follows it."""


@dataclass(frozen=True)
class Treebank:
    """The sentences of one file."""

    path: str
    """Where it lies."""
    sentences: tuple[Sentence, ...]
    """In order."""

    def documents(self) -> list[tuple[str, str]]:
        """(id, text) of each document, in order of first appearance."""
        texts: dict[str, list[str]] = {}
        for sentence in self.sentences:
            parts = texts.setdefault(sentence.document, [])
            if parts and sentence.paragraph:
                parts[-1] = parts[-1].rstrip(" ") + "\n\n"
            parts.append(sentence.text + ("" if sentence.glued else " "))
        return [(name, "".join(parts).strip()) for name, parts in texts.items()]


def read_conllu(path: str | Path) -> Treebank:
    """The sentences of a .conllu or .conllu.gz file.

    Raises:
        UserError: the file is missing, damaged, not UTF-8, without sentences; or a line is broken: file and line
            number are named.
    """
    sentences: list[Sentence] = []
    comments: list[str] = []
    rows: list[_Row] = []
    document, count = "", 0
    lines = [line.removesuffix("\r") for line in decode(path, "CoNLL-U file").split("\n")]
    for number, line in enumerate([*lines, ""], start=1):
        if line.startswith("#"):
            comments.append(line)
            if match := _NEWDOC.fullmatch(line.rstrip()):
                count += 1
                document = match[1] or str(count)
        elif line.strip():
            rows.append(_Row(f"{path}, line {number}", line.split("\t")))
        elif rows:
            sentences.append(_sentence(rows, comments, document))
            comments, rows = [], []
    require(bool(sentences), f"{path} has no sentences: expected CoNLL-U, one word a line in ten columns")
    return Treebank(str(path), tuple(sentences))


class _Row:
    """One line of a sentence, checked."""

    def __init__(self, place: str, cells: list[str]) -> None:
        self.place, self.cells = place, cells
        self.check(len(cells) == _COLUMNS, f"{len(cells)} columns between tabs, expected {_COLUMNS}")
        match = _ID.fullmatch(cells[0])
        self.check(bool(match), f"expected an id such as 3, 3-4 or 3.1, got {cells[0]!r}")
        assert match
        self.kind = match[2] or ""
        self.first = int(match[1])
        self.last = int(match[3]) if self.kind == "-" else self.first
        self.form = cells[1]
        self.glued = "SpaceAfter=No" in cells[9].split("|")
        self.check(bool(self.form.strip()) or self.kind == ".", "expected a word's form in the second column")

    def check(self, condition: bool, message: str) -> None:
        if not condition:
            raise UserError(f"{self.place}: {message}")

    def features(self) -> dict[str, str]:
        """Column 6, "A=b|C=d"."""
        pairs = [] if self.cells[5] in ("_", "") else self.cells[5].split("|")
        self.check(all("=" in pair for pair in pairs), f"expected Name=Value|..., got {self.cells[5]!r}")
        return dict(pair.split("=", 1) for pair in pairs)

    def head(self, words: int) -> int:
        """Column 7 as an index from 0; -1 for the root and for none."""
        cell = self.cells[6]
        number = 0 if cell == "_" else int(cell) if re.fullmatch(_NUMBER, cell) else -1
        self.check(0 <= number <= words, f"expected a head from 0 to {words}, got {cell!r}")
        return number - 1


def _sentence(rows: list[_Row], comments: list[str], document: str) -> Sentence:
    words = [row for row in rows if not row.kind]
    for number, row in enumerate(words, start=1):
        row.check(row.first == number, f"expected word {number}, got {row.first}")
    written = _written(rows, len(words))
    given = [line.partition("=")[2].strip() for line in comments if re.match(r"#\s*text\s*=", line)]
    text = given[0] if given else "".join(r.form + ("" if r.glued else " ") for r in written).rstrip()
    spans = _spans(written, words, text)
    cells = [["" if cell == "_" else cell for cell in row.cells] for row in words]
    return Sentence(
        text,
        tuple(
            Word(row.form, *span, cell[3], cell[4], row.features(), row.head(len(words)), cell[7])
            for row, span, cell in zip(words, spans, cells, strict=True)
        ),
        document,
        any(re.match(r"#\s*new(par|doc)\b", line) for line in comments),
        bool(written) and written[-1].glued,
    )


def _written(rows: list[_Row], words: int) -> list[_Row]:
    """The rows that are written: ranges, and words outside them."""
    written, covered = [], 0
    for row in rows:
        if row.kind == "-":
            row.check(
                covered < row.first <= row.last <= words, f"range {row.cells[0]} of {words} words is out of place"
            )
        if row.kind != "." and row.first > covered:
            written.append(row)
            covered = row.last
    return written


def _spans(written: list[_Row], words: list[_Row], text: str) -> list[tuple[int, int]]:
    """Where each word stands in the text."""
    spans: list[tuple[int, int]] = []
    at = 0
    for row in written:
        at += len(text[at:]) - len(text[at:].lstrip())
        row.check(text.startswith(row.form, at), f"{row.form!r} is not what `# text` has at character {at + 1}")
        forms = [word.form for word in words[row.first - 1 : row.last]]
        if "".join(forms) == row.form:
            edges = [at, *(at + length for length in accumulate(map(len, forms)))]
            spans += pairwise(edges)
        else:
            spans += [(at, at + len(row.form))] * len(forms)
        at += len(row.form)
    return spans
