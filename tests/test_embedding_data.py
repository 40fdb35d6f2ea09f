"""What experiments on an embedding work on: rows with their tokens, labels, sets and pairs, and misfits refused."""

from dataclasses import dataclass, replace

import pytest
import torch

from experiments.embedding import data
from experiments.embedding.data import NULLS, vocabulary
from experiments.embedding.labels import BANDS, KINDS, labels
from experiments.embedding.planted import DAYS, PLANTING, planted_tokens
from experiments.embedding.word_sets import SETS, alike, members, pairs
from toolkit.errors import UserError
from toolkit.language import Embedding, load_embedding


@dataclass(frozen=True)
class Given:
    model: str = ""
    null: str = ""
    frequencies: str = ""


class Words:
    """A tokenizer of the given tokens, which may leave numbers out."""

    def __init__(self, words, skip=()):
        self.words = dict(zip([i for i in range(len(words) + len(skip)) if i not in skip], words, strict=True))

    def __len__(self):
        return len(self.words)

    def get_vocab(self):
        return {word: at for at, word in self.words.items()}

    def batch_decode(self, many, clean_up_tokenization_spaces):
        assert not clean_up_tokenization_spaces
        return ["".join(self.words[i].replace("▁", "") for i in ids) for ids in many]

    def convert_ids_to_tokens(self, ids):
        return [self.words[i] for i in ids]

    def encode(self, text, add_special_tokens):
        numbers = self.get_vocab()
        return [numbers[word] for word in text.split()]


@pytest.fixture
def planted_model(monkeypatch):
    """Put an embedding of so many rows and a tokenizer in the place of one that is loaded."""

    def plant(rows, tokenizer):
        data._vocabulary.cache_clear()
        rows = torch.arange(2.0 * rows).reshape(rows, 2)
        monkeypatch.setattr(data, "_embedding", lambda model: Embedding(model, rows, tokenizer))
        return rows

    yield plant
    data._vocabulary.cache_clear()


def test_rows_and_texts_of_a_model_are_its_own(tiny_model):
    found, loaded = vocabulary(Given(str(tiny_model)), 0), load_embedding(str(tiny_model))
    assert torch.equal(found.rows, loaded.rows)
    assert found.texts[5] == loaded.tokenizer.decode([5])
    assert found.left_out == 0
    assert found.weights is None
    assert vocabulary(Given(str(tiny_model)), 0) is found  # loaded once in a process


def test_a_fifth_is_held_out_and_the_seed_decides_which():
    a, b = vocabulary(Given(), 0), vocabulary(Given(), 1)
    assert len(a.held_out) == round(len(a.rows) / 5)
    assert torch.equal(torch.cat([a.train, a.held_out]).sort().values, torch.arange(len(a.rows)))
    assert not torch.equal(a.held_out, b.held_out)


def test_frequencies_are_those_of_the_text(planted_model, tmp_path):
    planted_model(4, Words(["a", "b", "c", "d"]))
    (tmp_path / "text.txt").write_text("a a a b")
    found = vocabulary(Given("m", frequencies=str(tmp_path / "text.txt")), 0)
    torch.testing.assert_close(found.weights, torch.tensor([3.5, 1.5, 0.5, 0.5]) / 6)


def test_padding_is_left_out_and_counted_and_its_weight_goes_to_the_others(planted_model, tmp_path):
    rows = planted_model(8, Words(["a", "▁b", "c"], skip=(1,)))
    (tmp_path / "text.txt").write_text("a c")
    found = vocabulary(Given("m", frequencies=str(tmp_path / "text.txt")), 0)
    assert torch.equal(found.rows, rows[[0, 2, 3]])
    assert found.texts == ("a", " b", "c")  # with the space that SentencePiece keeps in the piece alone
    assert found.left_out == 5
    torch.testing.assert_close(found.weights, torch.tensor([1.5, 0.5, 1.5]) / 3.5)


@pytest.mark.parametrize(
    ("rows", "tokenizer", "words"),
    [
        (2, Words(["a", "b", "c"]), "does not fit its embedding of 2 rows: it has tokens up to number 2"),
        (
            200,
            Words(["a", "b"]),
            "does not fit its embedding of 200 rows: it knows 2 of them; at most 127 may be padding",
        ),
        (20, None, "has no tokenizer"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_one_line_where_texts_are_needed(planted_model, rows, tokenizer, words):
    planted_model(rows, tokenizer)
    with pytest.raises(UserError, match=words) as error:
        vocabulary(Given("m"), 0)
    assert "\n" not in str(error.value)
    bare = vocabulary(Given("m"), 0, texts=False)
    assert (len(bare.rows), bare.texts) == (rows, ())


@pytest.mark.parametrize("name", NULLS)
def test_a_null_takes_the_rows_place_and_leaves_the_texts(name):
    whole, null = vocabulary(Given(), 0), vocabulary(Given(null=name), 0)
    assert null.rows.shape == whole.rows.shape
    assert not torch.allclose(null.rows, whole.rows, atol=1e-2)
    assert null.texts == whole.texts
    with pytest.raises(UserError, match="unknown null 'gausian': did you mean 'gaussian'"):
        vocabulary(Given(null="gausian"), 0)


def test_the_planted_tokens_are_found_by_their_texts_where_they_were_planted():
    planted = planted_tokens(3)
    assert len(set(planted.texts)) == PLANTING.tokens
    for name, where in zip(SETS, planted.truth.circles, strict=True):
        assert members(planted.texts, name) == where.tolist()
    for relation, where in zip(("space", "capital"), planted.truth.pairs, strict=True):
        assert set(pairs(planted.texts, relation)) == {tuple(pair) for pair in where.tolist()}
    assert planted.weights.sum().item() == pytest.approx(1)
    assert set(planted.weights.argsort(descending=True)[:240].tolist()) == set(planted.truth.clusters[0].tolist())


def test_a_set_is_taken_in_the_first_form_that_is_whole():
    spaced, lower = [f" {day}" for day in DAYS], [day.lower() for day in DAYS]
    assert members([*lower, *spaced], "days") == list(range(7, 14))
    assert members([*lower, *spaced[1:]], "days") == list(range(7))
    assert members(lower[:6], "days") == []
    assert members([str(i) for i in range(9, -1, -1)], "digits") == list(range(9, -1, -1))


def test_random_sets_are_drawn_from_words_with_or_without_the_space():
    texts = [" one", "one", " two", " a1b", " ab", " drei"]
    assert alike(texts, [0]) == [2, 5]
    assert alike(texts, [1]) == []


def test_pairs_are_the_same_word():
    texts = [" cat", "cat", " Cat", "dog", " dogs", " a", "a", " A", " iPod", "iPod"]
    assert pairs(texts, "space") == [(0, 1)]
    assert pairs(texts, "capital") == [(0, 2)]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("class", ["letters", "letters", "digits", "punctuation", "mixed", "blank", "part of a character", "letters"]),
        ("capitalisation", ["lower", "Capitalised", "no case", "no case", "mIxed", "no case", "no case", "UPPER"]),
        ("leading space", ["space before", "no space"] + ["space before", "no space", "no space"] * 2),
        ("length", ["2-3", "4-5", "2-3", "0-1", "6-8", "0-1", "0-1", "9+"]),
    ],
)  # fmt: skip
def test_labels_by_hand(kind, expected):
    texts = (" the", "Word", " 12", ";", "iPhone4", "  ", "\ufffd", "ABCDEFGHI")
    tokens = replace(vocabulary(Given(), 0), texts=texts)
    found = labels(kind, tokens)
    assert [found.names[code] for code in found.codes] == expected


def test_every_planted_token_has_a_label_of_every_kind():
    tokens = vocabulary(Given(), 0)
    for kind in KINDS:
        found = labels(kind, tokens)
        assert len(found.codes) == len(tokens.rows)
        assert found.codes.max() < len(found.names)
        assert len(found.codes.unique()) > 1
    with pytest.raises(UserError, match="unknown kind of label 'clas': did you mean 'class'"):
        labels("clas", tokens)


def test_frequency_bands_go_by_the_weights_or_else_by_the_number():
    tokens = vocabulary(Given(), 0)
    bands = labels("frequency", tokens)
    assert bands.names == BANDS
    assert bands.codes.bincount().tolist() == pytest.approx([len(tokens.rows) / 5] * 5, abs=1)
    assert tokens.weights[bands.codes == 0].min() >= tokens.weights[bands.codes == 1].max()
    by_number = labels("frequency", replace(tokens, weights=None)).codes
    assert (by_number.diff() >= 0).all()
