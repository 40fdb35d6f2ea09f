"""Files of any bytes where text, trees, tables, results or weights are expected: read, or refused in one line."""

import gzip
import json
import shutil

import pytest
import torch
from fuzzing import EXAMPLES, assert_one_line, fuzz
from hypothesis import given, settings
from hypothesis import strategies as st
from test_audit_page import planted

from controls import audit_page
from toolkit.conllu import read_conllu
from toolkit.corpora import documents, read_text
from toolkit.errors import UserError
from toolkit.labelled import read_labelled
from toolkit.language import load_model
from toolkit.model_files import check_model
from toolkit.sae import SAEConfig, fit_sae, load_sae

ODD = st.sampled_from(
    [b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\x1f\x8b", "٣☃".encode(), b"9" * 5000]
)
CELLS = [
    "1",
    "2",
    "0",
    "1-2",
    "2-1",
    "1.1",
    "9" * 5000,
    "٣",
    "²",
    "_",
    "the",
    "cat",
    "thecat",
    "",
    " ",
    "A=b",
    "A=b|A=c",
    "=",
]
CELLS += ["SpaceAfter=No", "# text = the cat", "# newdoc id = a", "# newpar", "#", "VERB", "-1", "1e3"]


def read_or_refuse(read, path):
    """What is read, or None after a refusal in one line."""
    try:
        return read(path)
    except UserError as error:
        assert_one_line(str(error))


@st.composite
def trees(draw):
    """Lines in the manner of CoNLL-U, most of them broken somewhere."""
    word = "{0}\t{1}\t_\tX\tX\t{2}\t{3}\tdep\t_\t{4}".format
    cell = st.sampled_from(CELLS) | st.text("12-._ \u2028abc|=", max_size=4)
    sound = st.builds(
        word, st.integers(1, 3), st.sampled_from(["the", "cat"]), st.just("_"), st.integers(0, 3), st.just("_")
    )
    lines = draw(st.lists(st.one_of(sound, sound, st.builds(word, cell, cell, cell, cell, cell), cell), max_size=6))
    return "\n".join(lines).encode() + draw(ODD)


@st.composite
def tables(draw):
    """Lines in the manner of a table."""
    cell = st.sampled_from(["text", "label", "a", "b", '"', '"a', '"a,b"', "", " ", "x" * 200_000, "é\n"]) | st.text(
        max_size=3
    )
    rows = st.lists(st.lists(cell, max_size=3).map(",".join), max_size=4)
    head = draw(st.sampled_from(["text,label\n", "label,text\n", "text\n", "text,label,text\n", ""]))
    return (head + "\n".join(draw(rows))).encode(errors="replace") + draw(ODD)


@pytest.mark.parametrize("name", ["a.conllu", "a.conllu.gz"])
@given(raw=trees() | st.binary(max_size=40))
@fuzz
def test_trees(name, raw, tmp_path):
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name.endswith("gz") and len(raw) % 4 else raw)
    found = read_or_refuse(read_conllu, path)
    assert (read_or_refuse(documents, path) is None) or found is not None
    assert (read_or_refuse(read_labelled, path) is None) or found is not None


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@given(
    raw=st.lists(ODD | st.sampled_from([b"<|endoftext|>\n", b" = A = \n", b"\n", b"words "]), max_size=6).map(b"".join)
)
@fuzz
def test_text(name, raw, tmp_path):
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw)[: -1 - len(raw) % 3] if name.endswith("gz") else raw)
    text, parts = read_or_refuse(read_text, path), read_or_refuse(documents, path)
    assert text is not None or parts is None
    assert all(part.text.strip() for part in parts or ())


@given(raw=tables() | st.binary(max_size=40))
@fuzz
def test_tables(raw, tmp_path):
    (tmp_path / "a.csv").write_bytes(raw)
    read_or_refuse(read_labelled, tmp_path / "a.csv")


VALUE = st.sampled_from([None, True, -1, 0, 10**30, 1.5, float("nan"), "", "a\nb", "<b>", [], [1], {}, {"a": 1}])


@st.composite
def spoilt(draw, value):
    """A JSON value with one of its parts replaced or left out."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not keys or not draw(st.integers(0, 4)):
        return draw(VALUE)
    key, copy = draw(st.sampled_from(keys)), value.copy()
    if draw(st.integers(0, 3)):
        copy[key] = draw(spoilt(value[key]))
    else:
        del copy[key]
    return copy


@given(result=spoilt(planted()))
@fuzz
def test_results_of_audits(result, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(result))
    page = read_or_refuse(audit_page.write, tmp_path)
    assert page is None or page.read_text().endswith("</html>\n")


@given(raw=st.binary(max_size=30) | ODD | st.sampled_from([b"[" * 100_000, b"1" * 5000, b'{"metrics": NaN}']))
@fuzz
def test_results_that_are_no_json(raw, tmp_path):
    (tmp_path / "result.json").write_bytes(raw)
    assert read_or_refuse(audit_page.write, tmp_path) is None


@st.composite
def spoilt_bytes(draw, raw):
    """Bytes cut short, changed in one place, or others."""
    at = draw(st.integers(0, min(len(raw), 400)) | st.integers(0, len(raw)))
    return draw(
        st.sampled_from([raw[:at], raw[:at] + b"\xff" + raw[at + 1 :], raw[:at] + raw[at + 8 :], raw + b"x"]) | ODD
    )


@pytest.fixture(scope="module")
def sae_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saes") / "sae"
    rows = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    fit_sae(rows, SAEConfig(width=12, k=2, steps=5, batch=16)).save(folder)
    return folder


def few(test):
    """A fifth of the draws, for what loads a model each time."""
    return settings(fuzz, max_examples=max(5, EXAMPLES // 5))(test)


@given(data=st.data())
@fuzz
def test_saved_saes(data, sae_folder, tmp_path):
    damage(data, shutil.copytree(sae_folder, tmp_path / "sae", dirs_exist_ok=True))
    found = read_or_refuse(load_sae, str(tmp_path / "sae"))
    assert found is None or found.W_dec.shape[0] == 1


@given(data=st.data())
@few
def test_model_folders(data, tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "model", dirs_exist_ok=True)
    damage(data, folder)
    read_or_refuse(check_model, str(folder))
    read_or_refuse(load_model, str(folder))


def damage(data, folder):
    """One of a folder's files changed."""
    path = data.draw(st.sampled_from(sorted(path for path in folder.iterdir() if path.is_file())))
    if path.suffix == ".json" and data.draw(st.booleans()):
        path.write_text(json.dumps(data.draw(spoilt(json.loads(path.read_text())))))
    else:
        path.write_bytes(data.draw(spoilt_bytes(path.read_bytes())))
