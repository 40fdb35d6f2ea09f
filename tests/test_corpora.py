"""Text read or refused in one line, and token frequencies counted by hand."""

import gzip

import pytest
import torch

from toolkit import corpora
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
