"""Language models: the embedding that is loaded, and fits on it that a reader of the folder can check."""

import gzip
import json
import unicodedata
from collections import Counter

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file

from toolkit import metrics
from toolkit.configs import ARCHITECTURES
from toolkit.language import Embedding, ascii_safe, load_embedding


class Echo:
    """A tokenizer of one token a text."""

    def __init__(self, *texts):
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def decode(self, ids):
        return "".join(self.texts[i] for i in ids)


def test_the_rows_are_the_models_own_embedding(tiny_model):
    from transformers import GPT2LMHeadModel

    loaded = load_embedding(str(tiny_model))
    weights = GPT2LMHeadModel.from_pretrained(tiny_model).transformer.wte.weight
    assert loaded.rows.dtype == torch.float32
    assert not loaded.rows.requires_grad
    assert torch.equal(loaded.rows, weights.detach())
    assert loaded.name == str(tiny_model)


def test_tokens_are_shown_as_the_tokenizer_decodes_them(tiny_model):
    loaded = load_embedding(str(tiny_model))
    ids = loaded.tokenizer.encode("the cat sat", add_special_tokens=False)
    assert "".join(loaded.token(index) for index in ids) == "the cat sat"
    assert loaded.token(len(loaded.tokenizer)) == f"#{len(loaded.tokenizer)}"


def test_a_model_without_a_tokenizer_shows_numbers(tiny_model, tmp_path):
    for file in tiny_model.iterdir():
        if not file.name.startswith("token"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    loaded = load_embedding(str(tmp_path))
    assert torch.equal(loaded.rows, load_embedding(str(tiny_model)).rows)
    assert [loaded.token(0), loaded.token(7)] == ["#0", "#7"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x00\x7f\x9b", "\\x00\\x7f\\x9b"),
        ("\u202eabc\u2066", "\\u202eabc\\u2066"),
        ("\u200f\u061c\ufeff", "\\u200f\\u061c\\ufeff"),
        (" Öl ✓ 日本 🙂", " Öl ✓ 日本 🙂"),
    ],
)
def test_a_token_cannot_move_the_cursor_or_turn_the_text(text, shown):
    assert Embedding("m", torch.zeros(1, 2), Echo(text)).token(0) == shown


def test_every_character_that_acts_on_a_terminal_is_escaped():
    risky = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert len(risky) > 2000
    assert all(ascii_safe(c).isascii() and ascii_safe(c).isprintable() for c in risky)


@pytest.mark.slow
@pytest.mark.real_model
def test_a_pretrained_embedding_has_its_shape_and_decodes(real_model):
    loaded = load_embedding(str(real_model))
    assert loaded.rows.shape == (49152, 576)
    assert loaded.rows.isfinite().all()
    assert loaded.rows.norm(dim=1).min() > 0
    ids = loaded.tokenizer.encode("The capital of France is Paris", add_special_tokens=False)
    assert "".join(loaded.token(index) for index in ids) == "The capital of France is Paris"
    near = torch.nn.functional.normalize(loaded.rows, dim=1)
    dog, cat, of = (loaded.tokenizer.encode(word, add_special_tokens=False)[0] for word in (" dog", " cat", " of"))
    assert near[dog] @ near[cat] > near[dog] @ near[of]


def test_an_embedding_result_carries_its_scores_and_typical_tokens(embedding_run, tiny_model, result_of):
    result = result_of(embedding_run)
    assert result["name"] == f"embedding-{tiny_model.name}"
    assert result["config"]["embedding"]["model"] == str(tiny_model)
    scores = result["metrics"]
    assert {"fvu", "fvu_zero", "fvu_held_out", "fvu_zero_held_out", "l0", "l0_held_out", "dead"} <= set(scores)
    assert 0 < scores["fvu"] < scores["fvu_held_out"]
    assert scores["l0"] <= 4
    latents = json.loads((embedding_run / "tokens.json").read_text())
    assert latents
    assert all(0 <= latent["latent"] < 32 and latent["tokens"] for latent in latents)


def split_of(folder, tiny_model):
    """The raw rows trained on and held out, by the indices that the run kept."""
    rows, tensors = load_embedding(str(tiny_model)).rows, load_file(folder / "tensors.safetensors")
    both = torch.cat([tensors["train"], tensors["held_out"]])
    assert torch.equal(both.sort().values, torch.arange(len(rows)))
    return rows[tensors["train"]], rows[tensors["held_out"]], tensors


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_saved_sae_gives_the_reported_fvu_on_raw_held_out_rows(
    architecture, tiny_embedding, tiny_model, fit, result_of, tmp_path
):
    import sae_lens

    folder = fit(*tiny_embedding, "--architecture", architecture, "--out", tmp_path)
    train, held_out, _ = split_of(folder, tiny_model)
    assert len(held_out) == round(0.2 * (len(train) + len(held_out)))
    saved = sae_lens.SAE.load_from_disk(folder / "sae")
    scores = result_of(folder)["metrics"]
    with torch.no_grad():
        assert metrics.fvu(train, saved(train)) == pytest.approx(scores["fvu"], rel=1e-4)
        assert metrics.fvu(held_out, saved(held_out)) == pytest.approx(scores["fvu_held_out"], rel=1e-4)
        assert metrics.l0(saved.encode(held_out)) == pytest.approx(scores["l0_held_out"], rel=1e-3)


def test_centring_subtracts_the_mean_of_the_training_rows(
    embedding_run, tiny_embedding, tiny_model, fit, result_of, tmp_path
):
    train, _, tensors = split_of(embedding_run, tiny_model)
    torch.testing.assert_close(tensors["mean"], train.mean(0), atol=1e-6, rtol=1e-5)
    raw = fit(*tiny_embedding, "--nocentre", "--out", tmp_path)
    assert not load_file(raw / "tensors.safetensors")["mean"].any()
    assert [result_of(run)["config"]["embedding"]["centre"] for run in (embedding_run, raw)] == [True, False]
    assert result_of(raw)["metrics"]["fvu"] != result_of(embedding_run)["metrics"]["fvu"]


def test_with_unit_norm_the_saved_sae_takes_unit_rows(tiny_embedding, tiny_model, fit, result_of, tmp_path):
    folder = fit(*tiny_embedding, "--unit-norm", "--out", tmp_path)
    train, held_out, tensors = split_of(folder, tiny_model)
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(tensors["mean"], unit(train, dim=1).mean(0), atol=1e-6, rtol=1e-5)
    saved, reported = SAE.load_from_disk(folder / "sae"), result_of(folder)["metrics"]["fvu_held_out"]
    with torch.no_grad():
        assert metrics.fvu(unit(held_out, dim=1), saved(unit(held_out, dim=1))) == pytest.approx(reported, rel=1e-4)
        assert metrics.fvu(held_out, saved(held_out)) != pytest.approx(reported, rel=0.01)


def test_with_nothing_held_out_every_row_is_trained_on(tiny_embedding, tiny_model, fit, result_of, tmp_path):
    folder = fit(*tiny_embedding, "--held-out", 0, "--out", tmp_path)
    train, held_out, _ = split_of(folder, tiny_model)
    assert (len(train), len(held_out)) == (len(load_embedding(str(tiny_model)).rows), 0)
    scores = result_of(folder)["metrics"]
    assert scores["fvu"] > 0
    assert scores["fvu_held_out"] is None
    assert scores["l0_held_out"] is None


@pytest.mark.parametrize("ending", [".txt", ".txt.gz"])
def test_frequencies_weigh_the_rows_by_smoothed_counts(ending, tiny_embedding, tiny_model, fit, result_of, tmp_path):
    text = "the cat sat on the mat. the cat! " * 30
    file = tmp_path / f"text{ending}"
    file.write_bytes(gzip.compress(text.encode()) if ending == ".txt.gz" else text.encode())
    folder = fit(*tiny_embedding, "--frequencies", file, "--out", tmp_path)
    loaded = load_embedding(str(tiny_model))
    counts = Counter(loaded.tokenizer.encode(text, add_special_tokens=False))
    smoothed = torch.tensor([counts[token] + 0.5 for token in range(len(loaded.rows))])

    scores = result_of(folder)["metrics"]
    assert scores["effective_tokens"] == pytest.approx((smoothed.sum() ** 2 / smoothed.square().sum()).item(), rel=1e-4)
    train, held_out, tensors = split_of(folder, tiny_model)
    saved = SAE.load_from_disk(folder / "sae")
    for rows, index, key in ((train, "train", "fvu"), (held_out, "held_out", "fvu_held_out")):
        weights = smoothed[tensors[index]]
        with torch.no_grad():
            expected = metrics.fvu(rows, saved(rows), weights=weights)
        assert scores[key.replace("fvu", "fvu_weighted")] == pytest.approx(expected, rel=1e-3)
        assert scores[key.replace("fvu", "fvu_weighted")] != pytest.approx(scores[key], rel=0.01)


@pytest.mark.slow
@pytest.mark.real_model
def test_a_pretrained_embedding_is_fitted_and_the_sae_beats_its_mean(real_model, data, fit, result_of, tmp_path):
    text = data / "text" / "wikitext2_valid.txt.gz"
    flags = ("--model", real_model, "--quiet", "--width", 64, "--k", 8, "--steps", 60, "--batch", 256)
    folder = fit("--target", "embedding", *flags, "--frequencies", text, "--out", tmp_path)
    scores = result_of(folder)["metrics"]
    assert scores["fvu_held_out"] < 1
    assert scores["l0"] <= 8
    assert 1 < scores["effective_tokens"] < 49152
    saved = SAE.load_from_disk(folder / "sae")
    _, held_out, _ = split_of(folder, real_model)
    with torch.no_grad():
        assert metrics.fvu(held_out, saved(held_out)) == pytest.approx(scores["fvu_held_out"], rel=1e-3)
