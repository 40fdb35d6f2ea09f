"""Labelled text: words with parts of speech, morphology and relations, texts with categories, and their documents.

Sources are named as in `corpora`: a .conllu file or a folder of them, `nltk:NAME[/PATTERN]`, and a .csv table.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from toolkit import nltk_corpora
from toolkit.conllu import Sentence, read_conllu
from toolkit.errors import UserError, require, unknown
from toolkit.text_files import CONLLU, decode, files_in


@dataclass(frozen=True)
class Layer:
    """One kind of label."""

    values: tuple[str, ...]
    """Its labels, sorted."""
    codes: Int[np.ndarray, " items"]
    """Index into `values` for each word or text; -1 where there is no label."""

    def __getitem__(self, item: int) -> str:
        """The label of one word or text, "" where there is none."""
        return self.values[self.codes[item]] if self.codes[item] >= 0 else ""


@dataclass(frozen=True)
class Labelled:
    """Texts (sentences, or whole documents where only these are labelled), their words and labels.

    Words and texts of one document are dependent: resample, permute and split by document (`splits.split_documents`),
    and count documents where a count of independent observations is asked for.
    """

    texts: tuple[str, ...]
    """What a model reads, one at a time."""
    documents: Int[np.ndarray, " texts"]
    """Document of each text, an index into `document_names`."""
    document_names: tuple[str, ...]
    """As in `corpora.documents` for the same source."""
    starts: Int[np.ndarray, " texts_and_one"]
    """Words of text i are starts[i] to starts[i + 1] - 1; texts without word labels have no words."""
    spans: Int[np.ndarray, "words 2"]
    """First character of each word in its text, and one past its last."""
    word_layers: dict[str, Layer]
    """Labels of words: upos, xpos, relation and one for each morphological feature (Number), or tag."""
    text_layers: dict[str, Layer]
    """Labels of texts: category, or the table's column."""
    heads: Int[np.ndarray, " words"] | None
    """Each word's head as an index of words; -1 for roots and for none. None where there are no trees."""

    @property
    def text_of_word(self) -> Int[np.ndarray, " words"]:
        """Index of the text each word stands in."""
        return np.repeat(np.arange(len(self.texts)), np.diff(self.starts))

    @property
    def words(self) -> list[str]:
        """Each word as it is written in its text."""
        return [self.texts[t][a:b] for t, (a, b) in zip(self.text_of_word, self.spans, strict=True)]


@dataclass
class _Item:
    """A text on its way into `Labelled`."""

    text: str
    document: str
    spans: list[tuple[int, int]] = field(default_factory=list)
    words: list[dict[str, str]] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    heads: list[int] | None = None


def read_labelled(
    source: str | Path,
    *,
    universal: bool = False,
    text_column: str = "text",
    label_column: str = "label",
    document_column: str = "",
) -> Labelled:
    """The texts, words and labels of a source.

    - CoNLL-U, a file or a folder of files: a text a sentence; layers upos, xpos, relation and each morphological
      feature; heads. Documents as `# newdoc` has them.
    - `nltk:` a tagged corpus (brown, treebank, conll2000, masc_tagged): a text a sentence, joined by
      `nltk_corpora.join_words`; layer tag; layer category of texts where the corpus has categories. A file is a
      document: conll2000, whose articles are not marked, has two.
    - `nltk:` a categorised corpus of documents (movie_reviews): a text a file, which is a document.
    - `nltk:` a categorised corpus of sentences (sentence_polarity, subjectivity): a text a line. It is not known which
      come from one review, so each is its own document, and intervals by document may come out too narrow.
    - A table (.csv, .csv.gz, with a header): a text a row, which is its own document unless a column says otherwise.

    Args:
        source: a path or an NLTK name.
        universal: tags of the universal tagset (Petrov, Das and McDonald 2012) for NLTK's tagged corpora; NLTK's own
            table (universal_tagset) has to be installed.
        text_column: of a table.
        label_column: of a table; also the layer's name.
        document_column: of a table.

    Raises:
        UserError: the source is missing, broken or without labels, an option does not go with it, or NLTK's table of
            tags is missing.
    """
    is_nltk, path = str(source).startswith("nltk:"), Path(source)
    columns = (text_column, label_column, document_column)
    is_table = not is_nltk and path.name.endswith((".csv", ".csv.gz"))
    require(is_nltk or not universal, f"universal tags are for NLTK's tagged corpora, not for {source}")
    require(is_table or columns == ("text", "label", ""), f"columns are for a .csv table, not for {source}")
    if is_nltk:
        return _build(_nltk_items(str(source).removeprefix("nltk:"), universal))
    if is_table:
        return _build(_table_items(path, *columns))
    names = files_in(path, CONLLU) if path.is_dir() else [path.name]
    known = path.is_dir() or path.name.endswith(CONLLU)
    require(known, f"{source} is not labelled: expected nltk:NAME, .csv, or a file or folder of {' or '.join(CONLLU)}")
    folder = path if path.is_dir() else path.parent
    return _build(_tree(s, name) for name in names for s in read_conllu(folder / name).sentences)


def _tree(sentence: Sentence, file: str) -> _Item:
    labels = [{"upos": w.upos, "xpos": w.xpos, "relation": w.relation, **w.features} for w in sentence.words]
    return _Item(
        sentence.text,
        f"{file}/{sentence.document}" if sentence.document else file,
        spans=[(w.start, w.end) for w in sentence.words],
        words=labels,
        heads=[w.head for w in sentence.words],
    )


def _nltk_items(name: str, universal: bool) -> Iterator[_Item]:
    reader, files = nltk_corpora.open_corpus(name)
    corpus = name.partition("/")[0]
    tagged, categorised = hasattr(reader, "tagged_sents"), hasattr(reader, "categories")
    require(tagged or categorised, f"NLTK corpus {corpus!r} has no labels: name a tagged or a categorised one")
    require(tagged or not universal, f"NLTK corpus {corpus!r} has no tags: universal goes with a tagged one")
    for file in files:
        labels = {"category": "|".join(reader.categories(fileids=[file]))} if categorised else {}
        if tagged:
            yield from _tagged(reader, file, corpus, labels, {"tagset": "universal"} if universal else {})
            continue
        text = nltk_corpora.text(reader, file, corpus).replace("\r\n", "\n")
        by_line = nltk_corpora.is_list_of_sentences(reader)
        for number, part in enumerate(text.split("\n") if by_line else [text], start=1):
            if part.strip():
                yield _Item(part, f"{corpus}/{file}" + (f"/{number}" if by_line else ""), labels=labels)


def _tagged(reader: Any, file: str, corpus: str, labels: dict[str, str], options: dict[str, str]) -> Iterator[_Item]:
    try:
        for paragraph in nltk_corpora.paragraphs(reader, file, **options):
            for sentence in paragraph:
                text, spans = nltk_corpora.join_words(word for word, _ in sentence)
                yield _Item(text, f"{corpus}/{file}", spans, [{"tag": tag} for _, tag in sentence], labels)
    except LookupError as error:
        raise UserError(
            "universal tags need NLTK's table universal_tagset: put it in taggers/ of a folder in NLTK_DATA, or leave "
            "the corpus its own tags"
        ) from error


def _table_items(path: Path, text: str, label: str, document: str) -> Iterator[_Item]:
    rows = csv.DictReader(io.StringIO(decode(path, "table"), newline=""), strict=True)
    try:
        for column in filter(None, (text, label, document)):
            if column not in (rows.fieldnames or []):
                raise unknown(f"column of {path}", column, rows.fieldnames or [])
        for row in rows:
            place = f"{path}, line {rows.line_num}"
            cells = len(rows.fieldnames or [])
            require(None not in row and None not in row.values(), f"{place}: expected {cells} cells, as in the header")
            for column in filter(None, (text, label, document)):
                require(bool(row[column].strip()), f"{place}: {column} is blank")
            name = f"{path.name}/{row[document] if document else rows.line_num}"
            yield _Item(row[text], name, labels={label: row[label]})
    except csv.Error as error:
        raise UserError(f"{path}, line {rows.line_num + 1}: {error}") from error


def _build(items: Iterable[_Item]) -> Labelled:
    kept = list(items)
    require(bool(kept), "no labelled texts: expected at least one")
    words = [labels for item in kept for labels in item.words]
    starts = np.cumsum([0, *(len(item.words) for item in kept)])
    names = {name: index for index, name in enumerate(dict.fromkeys(item.document for item in kept))}
    return Labelled(
        tuple(item.text for item in kept),
        np.array([names[item.document] for item in kept]),
        tuple(names),
        starts,
        np.array([span for item in kept for span in item.spans], dtype=int).reshape(-1, 2),  # (words, 2)
        _layers(words),
        _layers([item.labels for item in kept]),
        _heads(kept, starts),
    )


def _layers(labels: list[dict[str, str]]) -> dict[str, Layer]:
    """A layer for each name that any label has, in order of first appearance."""
    given: dict[str, tuple[list[int], list[str]]] = {}
    for index, each in enumerate(labels):
        for name, label in each.items():
            places, found = given.setdefault(name, ([], []))
            if label:
                places.append(index)
                found.append(label)
    layers = {}
    for name, (places, found) in given.items():
        values, coded = np.unique(np.array(found, dtype=str), return_inverse=True)
        codes = np.full(len(labels), -1)
        codes[places] = coded
        layers[name] = Layer(tuple(values.tolist()), codes)
    return layers


def _heads(items: list[_Item], starts: np.ndarray) -> np.ndarray | None:
    if any(item.heads is None for item in items):
        return None
    pairs = zip(items, starts, strict=False)
    return np.array(
        [head + start if head >= 0 else -1 for item, start in pairs for head in item.heads or ()], dtype=int
    )
