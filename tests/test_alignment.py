"""Labels of words on tokens: hard cases by hand, an oracle in plain loops, and every word of a treebank."""

import itertools

import nltk.data
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.alignment import align, align_offsets, token_labels
from toolkit.errors import UserError
from toolkit.labelled import read_labelled

WOMAN_AT_LAPTOP = "\U0001f469\u200d\U0001f4bb"
E_WITH_ACCENT = "e\u0301"

CASES = {
    # text, words, tokens, word of each token, (first, last) token of each word
    "contraction": (
        "I don't",
        [(0, 1), (2, 4), (4, 7)],
        [(0, 1), (1, 5), (5, 7)],  # "I", " don", "'t": two of " don"'s characters are in "do", one in "n't"
        [0, 1, 2],
        [(0, 0), (1, 1), (1, 2)],
    ),
    "gonna, a multiword token": (
        " gonna go",
        [(1, 4), (4, 6), (7, 9)],
        [(0, 6), (6, 9)],  # one token on "gon" and "na"
        [0, 2],
        [(0, 0), (0, 0), (1, 1)],
    ),
    "words that share all their characters": ("del", [(0, 3), (0, 3)], [(0, 2), (2, 3)], [0, 0], [(0, 1), (0, 1)]),
    "punctuation glued to words": (
        '(end)."',
        [(0, 1), (1, 4), (4, 5), (5, 6), (6, 7)],
        [(0, 4), (4, 7)],  # "(end", then ')."' on three words, one character each: the first has it
        [1, 2],
        [(0, 0), (0, 0), (1, 1), (1, 1), (1, 1)],
    ),
    "leading and double spaces": (
        "  a  b\n",
        [(2, 3), (5, 6)],
        [(0, 1), (1, 3), (3, 4), (4, 6), (6, 7)],
        [-1, 0, -1, 1, -1],
        [(1, 1), (3, 3)],
    ),
    "combining accent in pieces of bytes": (
        f"caf{E_WITH_ACCENT} x",
        [(0, 5), (6, 7)],
        [(0, 3), (3, 4), (4, 5), (4, 5), (5, 7)],  # U+0301 is two bytes, a token each
        [0, 0, 0, 0, 1],
        [(0, 3), (4, 4)],
    ),
    "emoji of three code points, in bytes": (
        f"a {WOMAN_AT_LAPTOP}!",
        [(0, 1), (2, 5), (5, 6)],
        [(0, 1), (1, 3), (2, 3), (3, 4), (3, 4), (3, 4), (4, 5), (4, 5), (5, 6)],
        [0, 1, 1, 1, 1, 1, 1, 1, 2],
        [(0, 0), (1, 7), (8, 8)],
    ),
    "CJK without spaces": (
        "我喜欢猫",
        [(0, 1), (1, 3), (3, 4)],
        [(0, 1), (1, 2), (1, 2), (2, 4)],  # the last token is on two words
        [0, 1, 1, 1],
        [(0, 0), (1, 3), (3, 3)],
    ),
    "curly quotes": (
        "“hi”",
        [(0, 1), (1, 3), (3, 4)],
        [(0, 1), (0, 1), (1, 3), (3, 4), (3, 4)],
        [0, 0, 1, 2, 2],
        [(0, 1), (2, 2), (3, 4)],
    ),
    "special tokens and padding": ("ab", [(0, 2)], [(0, 0), (0, 2), (0, 0), (0, 0)], [-1, 0, -1, -1], [(1, 1)]),
    "a text cut before its second word": ("ab cd", [(0, 2), (3, 5)], [(0, 2)], [0], [(0, 0), (-1, -1)]),
    "no words": ("ab", [], [(0, 1), (1, 2)], [-1, -1], []),
    "no tokens": ("ab", [(0, 2)], [], [], [(-1, -1)]),
}


def pairs(values):
    return np.array(values, dtype=int).reshape(-1, 2)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_hard_cases_by_hand(case):
    _, spans, offsets, words, pieces = case
    found = align_offsets(np.arange(len(offsets)), pairs(offsets), pairs(spans))
    assert found.words.tolist() == words
    assert [tuple(pair) for pair in found.pieces.tolist()] == pieces
    ends = [[word >= 0 and pieces[word][end] == token for token, word in enumerate(words)] for end in (0, 1)]
    assert [found.first.tolist(), found.last.tolist()] == ends


def test_special_tokens_with_characters_are_no_words():
    marks = np.array([True, False])
    found = align_offsets(np.arange(2), pairs([(0, 2), (0, 2)]), pairs([(0, 2)]), special=marks)
    assert found.words.tolist() == [-1, 0]
    assert found.pieces.tolist() == [[1, 1]]


def test_labels_are_on_the_piece_that_was_asked_for():
    spans, offsets = pairs([(0, 3), (4, 6)]), pairs([(0, 0), (0, 1), (1, 2), (2, 3), (3, 4), (4, 6)])
    found = align_offsets(np.arange(6), offsets, spans)
    codes = np.array([7, 5])
    assert found.labels(codes, piece="first").tolist() == [-1, 7, -1, -1, -1, 5]
    assert found.labels(codes, piece="last").tolist() == [-1, -1, -1, 7, -1, 5]
    assert found.labels(codes, piece="all").tolist() == [-1, 7, 7, 7, -1, 5]
    assert found.labels(codes).tolist() == found.labels(codes, piece="last").tolist()


def plain(offsets, spans):
    """The definition, in loops: word of each token, ends of each word."""
    words, ends = [], [(-1, -1)] * len(spans)
    for token, (start, end) in enumerate(offsets):
        shared = [max(0, min(end, stop) - max(start, begin)) for begin, stop in spans]
        words.append(shared.index(max(shared)) if any(shared) else -1)
        for word in np.flatnonzero(shared):
            ends[word] = (token if ends[word][0] < 0 else ends[word][0], token)
    return words, ends


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_definition_in_plain_loops_agrees(draws):
    edges = sorted(draws.draw(st.sets(st.integers(0, 30), max_size=12)))
    kept = [draws.draw(st.booleans()) for _ in edges[1:]]
    spans = [span for span, keep in zip(itertools.pairwise(edges), kept, strict=True) if keep]
    spans = [span for span in spans for _ in range(draws.draw(st.integers(1, 2)))]
    starts = sorted(draws.draw(st.lists(st.integers(0, 30), max_size=15)))
    offsets = [(start, start + draws.draw(st.integers(0, 6))) for start in starts]
    found = align_offsets(np.arange(len(offsets)), pairs(offsets), pairs(spans))
    words, ends = plain(offsets, spans)
    assert found.words.tolist() == words
    assert [tuple(pair) for pair in found.pieces.tolist()] == ends


@pytest.mark.parametrize("spans", [[(0, 2), (1, 3)], [(1, 1)], [(2, 1)]])
def test_words_that_overlap_in_part_or_are_empty_are_refused(spans):
    with pytest.raises(UserError, match="apart from or equal to each other"):
        align_offsets(np.arange(1), pairs([(0, 3)]), pairs(spans))


def test_wrong_calls_are_refused_in_one_line(tiny_tokenizer):
    found = align_offsets(np.arange(1), pairs([(0, 3)]), pairs([(0, 3)]))
    with pytest.raises(UserError, match="expected 1 codes, one a word, got 2"):
        found.labels(np.array([0, 1]))
    with pytest.raises(UserError, match="unknown piece 'middle'"):
        # Past the check of annotations, which is there in tests only.
        type(found).labels.__wrapped__(found, np.array([0]), piece="middle")
    with pytest.raises(UserError, match="outside its text"):
        align("the", pairs([(0, 4)]), tiny_tokenizer)
    with pytest.raises(UserError, match="object gives no character offsets: expected a fast tokenizer"):
        align("the", pairs([(0, 3)]), object())


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="session")
def real_tokenizer(real_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(real_model)


@pytest.fixture(params=["tiny", pytest.param("real", marks=pytest.mark.real_model)])
def tokenizer(request):
    return request.getfixturevalue(f"{request.param}_tokenizer")


def spelt(tokenizer, found, word):
    """A word's pieces, decoded."""
    first, last = found.pieces[word]
    return tokenizer.decode(found.ids[first : last + 1], clean_up_tokenization_spaces=False)


TEXTS = [
    (f"  I don't   {WOMAN_AT_LAPTOP} caf{E_WITH_ACCENT}", ["I", "do", "n't", WOMAN_AT_LAPTOP, f"caf{E_WITH_ACCENT}"]),
    ("“Gonna” (cat).\n我喜欢猫", ["“", "Gon", "na", "”", "(", "cat", ")", ".", "我", "喜欢", "猫"]),
]


@pytest.mark.parametrize(("text", "words"), TEXTS)
def test_decoded_pieces_contain_the_word(tokenizer, text, words):
    spans, at = [], 0
    for word in words:
        at = text.index(word, at)
        spans.append((at, at + len(word)))
        at += len(word)
    found = align(text, pairs(spans), tokenizer)
    for index, word in enumerate(words):
        assert word in spelt(tokenizer, found, index)


def test_pieces_of_a_known_tokenizer(tiny_tokenizer):
    # A letter alone is a token for each of its bytes; é is two, and "sat" with its space one that was learned.
    found = align("é sat", pairs([(0, 1), (2, 5)]), tiny_tokenizer)
    assert tiny_tokenizer.convert_ids_to_tokens(found.ids.tolist()) == ["Ã", "©", "Ġsat"]
    assert found.words.tolist() == [0, 0, 1]
    assert found.pieces.tolist() == [[0, 1], [2, 2]]


def test_every_word_of_the_treebank_has_tokens_that_spell_it(data, tokenizer):
    found = read_labelled(data / "ud_english_ewt" / "test.conllu.gz")
    words, missing, read = found.words, [], 0
    for text, (start, end) in enumerate(zip(found.starts[:-1], found.starts[1:], strict=True)):
        aligned = align(found.texts[text], found.spans[start:end], tokenizer)
        assert (aligned.pieces >= 0).all()
        missing += [word for i, word in enumerate(words[start:end]) if word not in spelt(tokenizer, aligned, i)]
        read += end - start
    assert missing == []
    assert read == 25_094


def test_labels_of_a_corpus_are_those_of_its_texts(tmp_path, tiny_tokenizer):
    rows = ["the", "cat", ",", "on", "a", "mat"]
    lines = [f"{i}\t{form}\t_\tX{form}\t_\t_\t0\tdep\t_\t_" for i, form in enumerate(rows[:3], start=1)]
    more = [f"{i}\t{form}\t_\tX{form}\t_\t_\t0\tdep\t_\t_" for i, form in enumerate(rows[3:], start=1)]
    (tmp_path / "a.conllu").write_text("\n".join([*lines, "", "# newdoc id = b", *more, ""]))
    labelled = read_labelled(tmp_path / "a.conllu")
    for piece in ("first", "last", "all"):
        found = token_labels(labelled, tiny_tokenizer, "upos", piece=piece)
        assert [found.values[code] for code in found.codes] == [f"X{labelled.words[word]}" for word in found.words]
        alone = [
            align(t, labelled.spans[a:b], tiny_tokenizer)
            for t, (a, b) in zip(labelled.texts, [(0, 3), (3, 6)], strict=True)
        ]
        assert sorted(set(found.words)) == list(range(6))
        for text, position, id_, word in zip(found.texts, found.positions, found.ids, found.words, strict=True):
            assert alone[text].ids[position] == id_
            assert alone[text].words[position] == word - labelled.starts[text]
        assert (found.documents == found.texts).all()
    with pytest.raises(UserError, match="unknown layer 'ups': did you mean 'upos'"):
        token_labels(labelled, tiny_tokenizer, "ups")


def test_a_label_of_a_text_is_on_its_last_token_or_on_all(tmp_path, tiny_tokenizer):
    (tmp_path / "t.csv").write_text("text,label\nthe cat,b\non a mat,a\n")
    labelled = read_labelled(tmp_path / "t.csv")
    lengths = [len(tiny_tokenizer(text)["input_ids"]) for text in labelled.texts]
    found = token_labels(labelled, tiny_tokenizer, "label")
    assert found.positions.tolist() == [length - 1 for length in lengths]
    assert [found.values[code] for code in found.codes] == ["b", "a"]
    assert found.words.tolist() == [-1, -1]
    everywhere = token_labels(labelled, tiny_tokenizer, "label", piece="all")
    assert np.bincount(everywhere.texts).tolist() == lengths


def test_sentiment_on_tokens(data, monkeypatch, tiny_tokenizer):
    monkeypatch.setattr(nltk.data, "path", [str(data / "nltk")])
    labelled = read_labelled("nltk:movie_reviews/*/cv00*")
    found = token_labels(labelled, tiny_tokenizer, "category")
    assert np.bincount(found.codes).tolist() == [10, 10]
    assert len(set(found.documents)) == 20
