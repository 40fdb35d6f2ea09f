"""Text read as documents or refused in one line, and token frequencies counted by hand."""

import gzip
import zipfile

import nltk.data
import pytest
import torch

from toolkit import corpora, nltk_corpora
from toolkit.errors import UserError

TEXT = "the cat sat on the mat: Öl ✓\n"


class Letters:
    """A tokenizer whose tokens are the letters a, b, c, ... and whose special token is 0, the letter a."""

    def encode(self, text, add_special_tokens=True):
        return [0] * add_special_tokens + [ord(letter) - ord("a") for letter in text]


def test_plain_and_compressed_text_read_alike(tmp_path):
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert corpora.read_text(tmp_path / "a.txt") == TEXT
    assert corpora.read_text(str(tmp_path / "a.txt.gz")) == TEXT


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "no text file at"),
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\t\n", "is empty"),
        ("empty.txt.gz", gzip.compress(b""), "is empty"),
        ("binary.txt", b"\xff\xfe\x00\x80", "cannot read"),
        ("not_gzip.txt.gz", TEXT.encode(), "cannot read"),
        ("cut.txt.gz", gzip.compress(TEXT.encode() * 50)[:-12], "cannot read"),
        ("bad_checksum.txt.gz", gzip.compress(TEXT.encode())[:-8] + bytes(8), "cannot read"),
        ("bad_body.txt.gz", gzip.compress(TEXT.encode())[:10] + b"\xff" * 20, "cannot read"),
        ("binary.txt.gz", gzip.compress(b"\xff\xfe\x00\x80"), "cannot read"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_text_that_cannot_be_had_is_refused_in_one_line_that_names_the_file(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        corpora.read_text(tmp_path / name)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_is_no_text_file(tmp_path):
    with pytest.raises(UserError, match="no text file"):
        corpora.read_text(tmp_path)


def test_smoothed_frequencies_by_hand():
    # abacab: three a, two b, one c; d never.
    frequencies = corpora.unigram("abacab", Letters(), 4)
    torch.testing.assert_close(frequencies, torch.tensor([3.5, 2.5, 1.5, 0.5]) / 8)
    unsmoothed = corpora.unigram("abacab", Letters(), 4, smoothing=0.0)
    torch.testing.assert_close(unsmoothed, torch.tensor([3.0, 2.0, 1.0, 0.0]) / 6)


def test_tokens_are_counted_in_a_text_of_any_length():
    text = "abc" * 70_001 + "d"
    frequencies = corpora.unigram(text, Letters(), 5, smoothing=0.0)
    torch.testing.assert_close(frequencies, torch.tensor([70_001, 70_001, 70_001, 1.0, 0]) / 210_004)


def test_effective_size_counts_equal_rows_and_discounts_unequal_ones():
    assert corpora.effective_size(torch.full((7,), 0.3)) == pytest.approx(7.0)
    assert corpora.effective_size(torch.tensor([5.0, 0.0, 0.0])) == pytest.approx(1.0)
    assert corpora.effective_size(torch.tensor([3.0, 1.0])) == pytest.approx(16 / 10)


WIKITEXT = """ \n = First article = \n \n Words of it . \n = 1 kg and a nominal k = \n \n = = Section = = \n \n More .\n
 = Second = \n \n Other words . \n"""


def named(source):
    return {document.name: document.text for document in corpora.documents(source)}


def refused(source):
    with pytest.raises(UserError) as error:
        corpora.documents(source)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Write an NLTK corpus, zipped, into a folder that is all NLTK knows."""
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    loaded = __import__("nltk.corpus", fromlist=["corpus"])

    def write(name, files):
        monkeypatch.setattr(loaded, name, fresh_loader(getattr(loaded, name), name))
        (tmp_path / "corpora").mkdir(exist_ok=True)
        with zipfile.ZipFile(tmp_path / "corpora" / f"{name}.zip", "w") as archive:
            archive.writestr(f"{name}/", "")
            for file, content in files.items():
                archive.writestr(f"{name}/{file}", content)

    return write


def fresh_loader(reader, name):
    """NLTK's loaders become the corpus they loaded first, wherever its folder was; this one has not loaded any."""
    from nltk.corpus.reader import PlaintextCorpusReader, TaggedCorpusReader, WordListCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    kinds = {
        "abc": (PlaintextCorpusReader, r"(?!\.).*\.txt", "latin_1"),
        "brown": (TaggedCorpusReader, r"c[a-z]\d\d", "ascii"),
        "names": (WordListCorpusReader, r"(?!README|\.).*\.txt", "ascii"),
    }
    kind, files, encoding = kinds[name]
    return LazyCorpusLoader(name, kind, files, encoding=encoding)


def test_a_text_file_is_one_document_named_after_it(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfone\r\ntwo = 2 =\n"))
    assert named(tmp_path / "a.txt.gz") == {"a.txt.gz": "one\ntwo = 2 =\n"}


def test_headings_of_level_one_between_blank_lines_begin_documents(tmp_path):
    (tmp_path / "w.txt").write_text(WIKITEXT)
    found = named(tmp_path / "w.txt")
    assert list(found) == ["w.txt/1 First article", "w.txt/2 Second"]
    assert "nominal" in found["w.txt/1 First article"]
    assert "Section" in found["w.txt/1 First article"]
    (tmp_path / "w.txt").write_text("Before all . \n" + WIKITEXT)
    assert list(named(tmp_path / "w.txt")) == ["w.txt/1", "w.txt/2 First article", "w.txt/3 Second"]
    assert "\n".join(named(tmp_path / "w.txt").values()) == "Before all . \n" + WIKITEXT


def test_end_of_text_lines_separate_documents_and_blank_ones_are_left_out(tmp_path):
    (tmp_path / "a.txt").write_text("one\nmore <|endoftext|> inside\n<|endoftext|>\n \n<|endoftext|>\ntwo")
    assert named(tmp_path / "a.txt") == {"a.txt/1": "one\nmore <|endoftext|> inside", "a.txt/3": "two"}


def test_a_folder_gives_its_files_sorted_with_sub_folders_without_hidden_and_blank_ones(tmp_path):
    for name, text in {"b.txt": "b", "a/z.txt": "z", ".h.txt": "h", ".d/x.txt": "x", "n.md": "n", "0.txt": " "}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "c.conllu").write_text("# newdoc id = one\n# text = Hi\n1\tHi\thi\tINTJ\tUH\t_\t0\troot\t_\t_\n")
    assert named(tmp_path) == {"a/z.txt": "z", "b.txt": "b", "c.conllu/one": "Hi"}


def test_what_cannot_be_had_is_refused_in_one_line(tmp_path):
    assert "no file or folder at" in refused(tmp_path / "none")
    assert "no text in" in refused(tmp_path)
    (tmp_path / "blank.txt").write_text(" \n")
    assert "holds no text" in refused(tmp_path / "blank.txt")
    assert "holds no text" in refused(tmp_path)
    (tmp_path / "table.csv").write_text("text,label\n")
    assert "read_labelled" in refused(tmp_path / "table.csv")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00\x80")
    assert "bad.txt" in refused(tmp_path)
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(TEXT.encode() * 50)[:-12])
    assert "cannot read" in refused(tmp_path / "cut.txt.gz")


def test_a_data_set_that_cannot_be_had_offline_is_refused_in_one_line():
    assert "no data set hf:no-such-name-anywhere:config:split" in refused("hf:no-such-name-anywhere:config:split")
    assert "names no data set" in refused("hf:")


def test_a_data_set_gives_a_document_a_row(monkeypatch):
    import datasets

    asked = []

    def load_dataset(path, name, split):
        asked.append((path, name, split))
        return datasets.Dataset.from_dict({"text": ["one\r\n", "", None, "two"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert named("hf:some/name:config:train[:1%]") == {"some/name/1": "one\n", "some/name/4": "two"}
    corpora.documents("hf:some/name")
    assert asked == [("some/name", "config", "train[:1%]"), ("some/name", None, "train")]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict({"body": ["one"]}))
    assert "it has body" in refused("hf:some/name")


def test_a_zipped_nltk_corpus_is_read_where_it_lies(corpus):
    corpus("abc", {"one.txt": "Caf\xe9\r\n".encode("latin-1"), "two.txt": "caf\u00e9".encode(), "README": "no"})
    corpus("brown", {"ca01": "The/at jury/nn said/vbd ``/`` no/uh ''/'' ./.\n\n\nIt/pps won't/md !/.\n"})
    assert named("nltk:abc") == {"abc/one.txt": "Caf\u00e9\n", "abc/two.txt": "caf\u00e9"}
    assert list(named("nltk:abc/t*")) == ["abc/two.txt"]
    assert named("nltk:brown") == {"brown/ca01": 'The jury said "no".\n\nIt won\'t!'}


def test_an_nltk_corpus_that_cannot_be_had_is_refused_in_one_line(corpus, tmp_path):
    assert "no corpora are installed; set NLTK_DATA" in refused("nltk:abc")
    corpus("abc", {"one.txt": "text"})
    assert "did you mean 'abc'? valid: abc; set NLTK_DATA" in refused("nltk:abcd")
    assert "unknown NLTK corpus 'brown'" in refused("nltk:brown")
    assert "takes none of the 1 files of NLTK corpus 'abc': the nearest is 'one.txt'" in refused("nltk:abc/on.txt")
    corpus("names", {"male.txt": "Ada\n"})
    assert "'names' is not text: WordListCorpusReader" in refused("nltk:names")
    corpus("brown", {"ca01": "The/at"})
    archive = tmp_path / "corpora" / "brown.zip"
    archive.write_bytes(archive.read_bytes()[:40])
    assert "cannot read NLTK corpus 'brown'" in refused("nltk:brown")


def test_words_are_joined_as_they_would_be_written():
    words = (
        "``",
        "I",
        "do",
        "n't",
        ",",
        "''",
        "said",
        "Ann",
        "-LRB-",
        "Bo",
        "'s",
        "aunt",
        "-RRB-",
        ":",
        "$",
        "5",
        "1\\/2",
    )
    text, spans = nltk_corpora.join_words(words)
    assert text == "\"I don't,\" said Ann (Bo's aunt): $5 1/2"
    shown = [text[start:end] for start, end in spans]
    assert shown == ['"', "I", "do", "n't", ",", '"', "said", "Ann", "(", "Bo", "'s", "aunt", ")", ":", "$", "5", "1/2"]
    assert nltk_corpora.join_words(['"', "a", '"', "b", '"', "c", '"'])[0] == '"a" b "c"'
    assert nltk_corpora.join_words([]) == ("", [])


@pytest.mark.parametrize(
    ("name", "count", "first", "start"),
    [
        (
            "movie_reviews/neg/cv00*",
            10,
            "movie_reviews/neg/cv000_29416.txt",
            "plot : two teen couples go to a church party ,",
        ),
        ("inaugural", 59, "inaugural/1789-Washington.txt", "Fellow-Citizens of the Senate and of the House"),
        ("shakespeare", 8, "shakespeare/a_and_c.xml", "The Tragedy of Antony and Cleopatra"),
        ("treebank/wsj_00*", 99, "treebank/wsj_0001.mrg", "Pierre Vinken, 61 years old, will join the board as a"),
        ("brown/ca*", 44, "brown/ca01", "The Fulton County Grand Jury said Friday an investigation"),
        ("genesis/english-*", 2, "genesis/english-kjv.txt", "In the beginning God created the heaven and the earth."),
    ],
)
def test_nltk_corpora_of_every_kind(data, monkeypatch, name, count, first, start):
    monkeypatch.setattr(nltk.data, "path", [str(data / "nltk")])
    found = corpora.documents(f"nltk:{name}")
    assert len(found) == len({document.name for document in found}) == count
    assert found[0].name == first
    assert found[0].text.strip().startswith(start)
    assert not any("\r" in document.text or "*T*" in document.text for document in found)


def test_files_whose_stated_encoding_is_wrong_are_read_right(data, monkeypatch):
    monkeypatch.setattr(nltk.data, "path", [str(data / "nltk")])
    (speech,) = corpora.documents("nltk:inaugural/2013*")
    assert "exceptional\u2014what" in speech.text
    assert "\u00e2" not in speech.text


def test_wikitext_and_the_treebank_as_documents(data):
    assert len(corpora.documents(data / "text" / "wikitext2_valid.txt.gz")) == 60
    assert len(corpora.documents(data / "text" / "wikitext2_test.txt.gz")) == 60
    trees = corpora.documents(data / "ud_english_ewt" / "test.conllu.gz")
    assert len(trees) == 316
    assert trees[-1].name == "test.conllu.gz/reviews-211933"
    assert trees[-1].text.startswith("Deep tissue massage helps with pain in neck and shoulders\n\nSeth provides")
