"""Corpora in NLTK's layout, zipped or not, from nltk.data.path (NLTK_DATA); nothing is downloaded."""

import difflib
import fnmatch
import importlib
import os
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any

from toolkit.errors import UserError, require, unknown

_SHOWN = {"``": '"', "''": '"', "-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}"}
_OPENING = frozenset([*"([{$#£€“‘`", "``", "-LRB-", "-LSB-", "-LCB-"])
_CLOSING = frozenset([*".,:;?!)]}%”…'", "...", "''", "-rrb-", "-rsb-", "-rcb-"]) | frozenset(
    ["n't", "'s", "'m", "'d", "'ll", "'re", "'ve"]
)


def texts(name: str) -> Iterator[tuple[str, str]]:
    """(name, text) of each file of NAME or NAME/PATTERN that is not blank."""
    corpus = name.partition("/")[0]
    reader, files = open_corpus(name)
    for file in files:
        content = text(reader, file, corpus).replace("\r\n", "\n")
        if content.strip():
            yield f"{corpus}/{file}", content


def open_corpus(name: str) -> tuple[Any, list[str]]:
    """The reader of NAME or NAME/PATTERN and the file ids that the pattern (of shells: *, ?, [abc]) takes.

    Raises:
        UserError: no such corpus is installed, it is damaged, or the pattern takes nothing.
    """
    corpus, _, pattern = name.partition("/")
    found = installed()
    hint = "set NLTK_DATA to the folder that holds corpora/ (nothing is downloaded)"
    require(bool(found), f"cannot have NLTK corpus {corpus!r}: no corpora are installed; {hint}")
    if corpus not in found:
        raise UserError(f"{unknown('NLTK corpus', corpus, found)}; {hint}")
    try:
        reader = getattr(_corpora(), corpus)
        files = list(reader.fileids()) if hasattr(reader, "fileids") else []
    except (LookupError, OSError, zipfile.BadZipFile, AttributeError) as error:
        raise UserError(f"cannot read NLTK corpus {corpus!r}: {' '.join(str(error).split())}") from error
    kept = [file for file in files if fnmatch.fnmatchcase(file, pattern or "*")]
    if files and not kept:
        near = difflib.get_close_matches(pattern, files, n=1, cutoff=0)[0]
        raise UserError(
            f"{pattern!r} takes none of the {len(files)} files of NLTK corpus {corpus!r}: the nearest is {near!r}"
        )
    return reader, kept


def installed() -> list[str]:
    """Names of the corpora that NLTK knows and that lie in nltk.data.path."""
    from nltk import data

    folders = [os.path.join(place, "corpora") for place in data.path]
    lying = {entry.removesuffix(".zip") for folder in folders if os.path.isdir(folder) for entry in os.listdir(folder)}
    return sorted(name for name in lying if hasattr(_corpora(), name) and not name.startswith("_"))


def _corpora() -> Any:
    return importlib.import_module("nltk.corpus")


def text(reader: Any, file: str, corpus: str) -> str:
    """A file's running text.

    Running text and lists of sentences are taken raw, as UTF-8 where they are that and else in the encoding that NLTK
    states; of plays in XML the text of all elements. Corpora of words (tagged, parsed, chunked) are joined by
    `join_words`, sentences by a space, paragraphs by a blank line where the corpus has them.

    Raises:
        UserError: the corpus is no running text (lists of words, lexicons), or damaged.
    """
    from nltk.corpus.reader import PlaintextCorpusReader, WordListCorpusReader, XMLCorpusReader

    try:
        if isinstance(reader, PlaintextCorpusReader) or is_list_of_sentences(reader):
            return _raw(reader, file)
        if type(reader) is XMLCorpusReader:
            return "".join(reader.xml(file).itertext())
        if hasattr(reader, "sents") and not isinstance(reader, WordListCorpusReader):
            return _joined(reader, file)
    except (OSError, ValueError, zipfile.BadZipFile, SyntaxError) as error:
        raise UserError(f"cannot read {file} of NLTK corpus {corpus!r}: {' '.join(str(error).split())}") from error
    raise UserError(f"NLTK corpus {corpus!r} is not text: {type(reader).__name__} reads it; name a corpus of sentences")


def is_list_of_sentences(reader: Any) -> bool:
    """The corpus has a sentence a line, in no order that matters."""
    from nltk.corpus.reader import CategorizedSentencesCorpusReader

    return isinstance(reader, CategorizedSentencesCorpusReader)


def _raw(reader: Any, file: str) -> str:
    """Some files are UTF-8 though NLTK states Latin-1: chance alone makes hardly any other text valid UTF-8."""
    with reader.abspath(file).open() as stream:
        raw = stream.read()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode(reader.encoding(file) or "utf-8")


def _joined(reader: Any, file: str) -> str:
    return "\n\n".join(
        " ".join(join_words([word for word, _ in sentence])[0] for sentence in paragraph)
        for paragraph in paragraphs(reader, file)
    )


def paragraphs(reader: Any, file: str, **options: str) -> Iterator[list[list[tuple[str, str]]]]:
    """Paragraphs of sentences of (word, tag); one paragraph where the corpus has none; traces (-NONE-) are left out.

    The tag is "" where the corpus has no tags. `options` go to the reader (tagset).
    """
    ways = ("tagged_paras", "tagged_sents", "paras", "sents")
    way = next(way for way in ways if hasattr(reader, way))
    found = getattr(reader, way)(file, **options)
    for paragraph in found if way.endswith("paras") else [found]:
        pairs = ([word if way.startswith("tagged") else (word, "") for word in sentence] for sentence in paragraph)
        kept = [[(word, tag or "") for word, tag in sentence if word and tag != "-NONE-"] for sentence in pairs]
        yield [sentence for sentence in kept if sentence]


def join_words(words: Iterable[str]) -> tuple[str, list[tuple[int, int]]]:
    """Words as a line of text, and where each stands in it.

    The Penn Treebank's quotes, brackets and escapes become the characters they stand for. A space goes between words
    except before closing punctuation and clitics ('s, n't), and after opening brackets, quotes and
    currency signs; straight double quotes open and close in turn. Spacing within a sentence is thus a guess.
    """
    text, spans, glue, quoted = "", [], True, False
    for word in words:
        shown = _SHOWN.get(word, word.replace("\\/", "/").replace("\\*", "*"))
        quoted ^= word == '"'
        opens = word in _OPENING or (word == '"' and quoted)
        closes = word.replace("’", "'").lower() in _CLOSING or (word == '"' and not quoted)
        text += "" if glue or closes else " "
        spans.append((len(text), len(text) + len(shown)))
        text, glue = text + shown, opens
    return text, spans
