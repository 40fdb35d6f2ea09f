"""CoNLL-U read by hand: ranges, empty nodes, spaces; broken lines named by file and number."""

import gzip

import pytest

from toolkit.conllu import read_conllu
from toolkit.errors import UserError


def line(number, form, *, head="0", features="_", misc="_", relation="dep", upos="X"):
    return "\t".join([str(number), form, "_", upos, "_", features, str(head), relation, "_", misc])


HARD = "\n".join(
    [
        "# newdoc id = first",
        "# sent_id = 1",
        "# text = We're gonna eat.",
        line("1-2", "We're"),
        line(1, "We", head=4, features="Case=Nom|Number=Plur", upos="PRON"),
        line(2, "'re", head=4),
        line("2.1", "really", head="_"),
        line("3-5", "gonna"),
        line(3, "gon", head=4),
        line(4, "go", head=0, relation="root"),
        line(5, "to", head="_", relation="_", upos="_"),
        line(6, "eat", head=4, misc="Gloss=x|SpaceAfter=No"),
        line(7, ".", head=4),
        "",
        "# newpar",
        line(1, "Zu", head=0),
        line("2-3", "dem", misc="SpaceAfter=No"),
        line(2, "zu", head=1),
        line(3, "dem", head=1),
        "",
        "",
        "# newdoc",
        line(1, "End", head=0),
    ]
)
"""The last sentence has no blank line after it."""


def read(tmp_path, text, name="a.conllu"):
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return read_conllu(tmp_path / name)


@pytest.mark.parametrize(("name", "newline"), [("a.conllu", "\n"), ("a.conllu.gz", "\r\n")])
def test_words_by_hand(tmp_path, name, newline):
    first, second, third = read(tmp_path, HARD.replace("\n", newline), name).sentences
    assert [word.form for word in first.words] == ["We", "'re", "gon", "go", "to", "eat", "."]
    assert [(word.start, word.end) for word in first.words] == [
        *((0, 2), (2, 5)),  # "We" + "'re" spell "We're"
        *[(6, 11)] * 3,  # "gon" + "go" + "to" do not spell "gonna"
        *((12, 15), (15, 16)),
    ]
    assert [word.head for word in first.words] == [3, 3, 3, -1, -1, 3, 3]
    assert first.words[0].features == {"Case": "Nom", "Number": "Plur"}
    assert (first.words[0].upos, first.words[4].upos, first.words[4].relation) == ("PRON", "", "")
    assert (second.text, second.paragraph, second.glued) == ("Zu dem", True, True)
    assert [(word.start, word.end) for word in second.words] == [(0, 2), (3, 6), (3, 6)]
    assert [sentence.document for sentence in (first, second, third)] == ["first", "first", "2"]


def test_documents_by_hand(tmp_path):
    assert read(tmp_path, HARD).documents() == [("first", "We're gonna eat.\n\nZu dem"), ("2", "End")]


def test_sentences_of_a_paragraph_are_joined_as_their_spaces_say(tmp_path):
    sentences = [line(1, "a"), "", line(1, "b", misc="Gloss=x|SpaceAfter=No"), "", line(1, "c"), ""]
    assert read(tmp_path, "\n".join(sentences)).documents() == [("", "a bc")]


def test_an_empty_node_is_never_written(tmp_path):
    (sentence,) = read(tmp_path, "\n".join([line("1.1", "x"), line(1, "a"), line("1.2", "_")])).sentences
    assert (sentence.text, len(sentence.words)) == ("a", 1)


def test_a_document_that_comes_back_is_one_document(tmp_path):
    parts = ["# newdoc id = x", line(1, "a"), "", "# newdoc id = y", line(1, "b"), "", "# newdoc id = x", line(1, "c")]
    assert read(tmp_path, "\n".join(parts)).documents() == [("x", "a\n\nc"), ("y", "b")]


def test_text_with_spaces_in_words_and_wide_spaces_between(tmp_path):
    (sentence,) = read(tmp_path, "# text = 3 000  km\n" + "\n".join([line(1, "3 000"), line(2, "km")])).sentences
    assert [(word.start, word.end) for word in sentence.words] == [(0, 5), (7, 9)]


@pytest.mark.parametrize(
    ("lines", "place", "message"),
    [
        (["1 spaces not tabs"], 1, "1 columns between tabs, expected 10"),
        ([line(1, "a"), line(3, "b")], 2, "expected word 2, got 3"),
        ([line("x", "a")], 1, "expected an id such as"),
        ([line(1, "a", head=2)], 1, "expected a head from 0 to 1, got '2'"),
        ([line(1, "a", head="b")], 1, "got 'b'"),
        ([line(1, "a", features="Number")], 1, "expected Name=Value"),
        ([line(1, "a"), line("2-3", "bc"), line(2, "b")], 2, "range 2-3 of 2 words is out of place"),
        (["", "# text = other", line(1, "a")], 3, "'a' is not what `# text` has at character 1"),
        ([line(1, " ")], 1, "expected a word's form"),
    ],
)
def test_a_broken_line_is_named(tmp_path, lines, place, message):
    with pytest.raises(UserError) as error:
        read(tmp_path, "\n".join(lines))
    assert f"a.conllu, line {place}: " in str(error.value)
    assert message in str(error.value)


def test_a_file_without_sentences_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no sentences"):
        read(tmp_path, "# newdoc id = x\n\n")
    with pytest.raises(UserError, match="no CoNLL-U file at"):
        read_conllu(tmp_path / "none.conllu")
