"""The command on a model's activations: the numbers reported are those of the files it wrote."""

import json
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_models import write_small
from test_command_errors import assert_refused
from transformers import AutoModelForCausalLM, AutoTokenizer

from toolkit import metrics, sae_scores
from toolkit.activations import harvest
from toolkit.configs import SAEConfig
from toolkit.corpora import documents
from toolkit.language import load_model
from toolkit.sae import fit_sae, load_sae
from toolkit.sae_fit import settings_from
from toolkit.sae_scores import score_rows, typical_rows

HOOK = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    return write_small("gpt2", tiny_model, tmp_path_factory.mktemp("fitted") / "gpt2")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder of twenty texts."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = np.random.default_rng(0)
    for number in range(20):
        words = draw.choice(["the", "cat", "sat", "on", "a", "mat", "and", "stat"], 60 + 5 * number)
        (folder / f"{number:02}.txt").write_text(" ".join(words))
    return folder


@pytest.fixture(scope="module")
def flags(model, corpus):
    return ("--target", "activations", "--model", model, "--hook", HOOK, "--corpus", corpus, "--quiet",
            "--context", 24, "--forward-batch", 256, "--held-out", 0.25,
            "--width", 32, "--k", 4, "--steps", 120, "--batch", 64)  # fmt: skip


@pytest.fixture(scope="module")
def done(fit, flags, tmp_path_factory):
    return fit(*flags, "--out", tmp_path_factory.mktemp("done"))


@pytest.fixture(scope="module")
def rows_of(model, corpus):
    found = harvest(load_model(model), documents(corpus), [HOOK], context=24, batch=256)
    return torch.from_numpy(np.array(found.rows(HOOK))).float(), torch.from_numpy(np.array(found.documents)), found


def parts(folder, rows_of):
    """Rows trained on and held out, by the documents that the run kept."""
    rows, of, _ = rows_of
    trained = torch.isin(of, load_file(folder / "tensors.safetensors")["documents_trained_on"])
    return rows[trained], rows[~trained]


def test_the_result_carries_settings_scores_and_losses(done, model, result_of):
    result = result_of(done)
    assert result["name"] == f"activations-gpt2-{HOOK}"
    assert result["config"]["activations"]["model"] == model
    assert "cache" not in result["config"]["activations"]
    scores = result["metrics"]
    names = {"fvu", "fvu_held_out", "l0", "l0_held_out", "dead", "kl", "ce_clean", "ce_spliced", "ce_zero_ablated"}
    assert {*names, "ce_mean_ablated", "ce_recovered_zero", "ce_recovered_mean", "corpus_special"} <= set(scores)
    assert 0 < scores["fvu"] < 1
    assert 0 < scores["fvu_held_out"] < 1
    assert scores["l0"] == scores["l0_held_out"] == 4
    assert {path.name for path in done.glob("*.svg")} == {"training.svg", "density.svg"}
    assert not [*done.rglob("checkpoint_*"), *done.rglob("*.tmp")]


def test_the_saved_sae_takes_raw_rows_and_gives_the_reported_numbers(done, rows_of, result_of):
    import sae_lens

    saved, scores = sae_lens.SAE.load_from_disk(done / "sae"), result_of(done)["metrics"]
    train, held_out = parts(done, rows_of)
    assert (len(train), len(held_out)) == (scores["rows"], scores["rows_held_out"])
    torch.testing.assert_close(load_file(done / "tensors.safetensors")["mean"], train.mean(0), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        for rows, name in ((train, ""), (held_out, "_held_out")):
            assert metrics.fvu(rows, saved(rows)) == pytest.approx(scores[f"fvu{name}"], rel=1e-4)
            assert metrics.l0(saved.encode(rows)) == pytest.approx(scores[f"l0{name}"], rel=1e-3)
        assert metrics.dead(saved.encode(train)) == pytest.approx(scores["dead"], abs=1e-6)


def test_the_saved_sae_says_where_it_belongs(done, model):
    import sae_lens

    told = sae_lens.SAE.load_from_disk(done / "sae").cfg.metadata
    assert (told.model_name, told.hook_name, told.context_size) == (model, HOOK, 24)


def test_no_more_context_is_told_than_the_model_reads(fit, flags, model, result_of, tmp_path):
    import sae_lens

    folder = fit(*flags, "--context", 4096, "--steps", 2, "--out", tmp_path)
    read = load_model(model).context
    assert result_of(folder)["config"]["activations"]["context"] == read < 4096
    assert sae_lens.SAE.load_from_disk(folder / "sae").cfg.metadata.context_size == read


def test_a_quarter_of_the_documents_is_held_out_whole(done, rows_of):
    trained = load_file(done / "tensors.safetensors")["documents_trained_on"]
    assert len(trained) == 15
    train, held_out = parts(done, rows_of)
    assert len(train) + len(held_out) == len(rows_of[0])


def test_the_clean_loss_is_the_hugging_face_models_on_held_out_documents(done, model, corpus, result_of):
    network, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    trained = set(load_file(done / "tensors.safetensors")["documents_trained_on"].tolist())
    losses = []
    for number, document in enumerate(documents(corpus)):
        ids = tokenizer(document.text, add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids) if number not in trained else 0, 23):
            window = torch.tensor([[tokenizer.bos_token_id, *ids[start : start + 23]]])
            with torch.no_grad():
                logs = network(window).logits.log_softmax(-1)[0, 1:-1]  # from text to text
            losses += (-logs[torch.arange(len(logs)), window[0, 2:]]).tolist()
    scores = result_of(done)["metrics"]
    assert scores["ce_predictions"] == len(losses)
    assert scores["ce_clean"] == pytest.approx(np.mean(losses), rel=1e-4)


def test_the_same_seed_gives_the_same_numbers_and_reads_the_cache(done, flags, fit, result_of, tmp_path, capfd):
    cache = done.parents[1] / "activations"
    assert len([*cache.iterdir()]) == 1
    capfd.readouterr()
    again = fit(*flags, "--out", tmp_path, "--cache", cache)
    assert "(read, not computed)" in capfd.readouterr().out
    assert result_of(again)["metrics"] == result_of(done)["metrics"]
    assert result_of(fit(*flags, "--out", tmp_path, "--seed", 1))["metrics"]["fvu"] != result_of(done)["metrics"]["fvu"]


@pytest.mark.parametrize("stage", ["activations", "SAE"])
def test_an_interrupted_run_goes_on_to_the_same_numbers(
    stage, done, flags, fit, run_main, result_of, tmp_path, monkeypatch
):
    from toolkit import activations, sae_training

    def interrupt_after(count, function):
        calls = []

        def call(*given, **named):
            calls.append(1)
            if len(calls) > count:
                raise KeyboardInterrupt
            return function(*given, **named)

        return call

    with monkeypatch.context() as patch:
        if stage == "activations":
            patch.setattr(activations, "_block", interrupt_after(1, activations._block))
        else:
            patch.setattr(sae_training.Trainer, "_step", interrupt_after(75, sae_training.Trainer._step))
        ended = run_main(*flags, "--out", tmp_path)
    assert ended.code == 130
    assert "--resume" in ended.err
    assert result_of(fit(*flags, "--out", tmp_path, "--resume"))["metrics"] == result_of(done)["metrics"]


def test_tokens_are_shown_in_their_document(done, rows_of, model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    latents = json.loads((done / "tokens.json").read_text())
    assert latents
    texts = [tokenizer.decode(rows_of[2].tokens[rows_of[2].documents == number]) for number in range(20)]
    for latent in latents:
        assert 0 < len(latent["contexts"]) == len(latent["tokens"]) <= 10
        for token, context in zip(latent["tokens"], latent["contexts"], strict=True):
            assert f"»{token}«" in context
            assert any(context.replace("»", "").replace("«", "") in text for text in texts)


def test_a_given_sae_is_evaluated_on_every_document(done, flags, run_main, rows_of, result_of, tmp_path):
    ended = run_main(*flags, "--sae", done / "sae", "--out", tmp_path)
    assert ended.code == 0, ended.err
    folder = next(tmp_path.glob("*/001"))
    scores, saved = result_of(folder)["metrics"], load_sae(str(done / "sae"))
    rows = rows_of[0]
    assert (scores["rows"], scores["rows_held_out"], scores["fvu"]) == (0, len(rows), None)
    assert metrics.fvu(rows, saved(rows[None])[0]) == pytest.approx(scores["fvu_held_out"], rel=1e-4)
    assert not (folder / "sae").exists()
    assert "training.svg" not in {path.name for path in folder.iterdir()}


def test_the_hook_of_a_given_sae_need_not_be_named(done, flags, run_main, tmp_path):
    at = flags.index("--hook")
    ended = run_main(*flags[:at], *flags[at + 2 :], "--sae", done / "sae", "--out", tmp_path)
    assert ended.code == 0, ended.err
    assert [path.name for path in tmp_path.glob("activations-*")] == [f"activations-gpt2-{HOOK}"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--hook blocks.1.hook_resid_pots", ["unknown hook", "did you mean 'blocks.1.hook_resid_post'"]),
        ("--hook blocks.1.attn.hook_pattern", ["blocks.1.attn.hook_pattern", "shape"]),
        ("--hook=", ["--hook is missing"]),
        ("--corpus=", ["--corpus is missing"]),
        ("--corpus /nowhere/text.txt", ["/nowhere/text.txt"]),
        ("--model /nowhere/model", ["/nowhere/model"]),
        ("--held-out 0.99", ["held_out=0.99", "20 documents"]),
        ("--held-out 1", ["held_out", "1"]),
        ("--context 0", ["context", "0"]),
        ("--context 1", ["context=1"]),
        ("--forward-batch 0", ["forward_batch"]),
        ("--rows -1", ["rows", "-1"]),
        ("--sae /nowhere/sae", ["/nowhere/sae"]),
        ("--sae no-such-release:layer_0", ["no-such-release"]),
        ("--centre", ["--centre", "--target embedding"]),
        ("--preset pentagon", ["--preset", "--target tms"]),
    ],
)
def test_a_mistake_is_one_line(words, said, flags, run_main, tmp_path):
    out = tmp_path / "runs"
    assert_refused(run_main(*flags, "--out", out, "--cache", tmp_path / "cache", *words.split()), *said, left_in=out)


def test_a_corpus_of_one_document_needs_nothing_held_out(flags, fit, run_main, result_of, tmp_path):
    (tmp_path / "one.txt").write_text("the cat sat on the mat and the cat sat " * 20)
    flags = (*flags, "--corpus", tmp_path / "one.txt", "--out", tmp_path / "runs")
    assert_refused(run_main(*flags), "1 documents", "--held-out 0")
    scores = result_of(fit(*flags, "--held-out", 0))["metrics"]
    assert scores["fvu_held_out"] is None
    assert scores["ce_clean"] > 0


def test_an_sae_for_another_width_is_refused(done, flags, run_main, tmp_path):
    other = ("--hook", "blocks.1.mlp.hook_post", "--out", tmp_path / "runs", "--cache", tmp_path)
    assert_refused(run_main(*flags, "--sae", done / "sae", *other), "rows of 16", "holds 64")


def test_the_default_model_ships_with_the_toolkit():
    assert settings_from(["--target", "activations"])["activations"].model == "tiny-gpt2"
    assert settings_from(["--target", "embedding"])["embedding"].model == "tiny-gpt2"
    assert settings_from(["--target", "gpt2-embedding"])["embedding"].model == "gpt2"


def test_help_for_activations_shows_its_flags_once(run_main):
    shown = run_main("--target", "activations", "--help")
    assert shown.code == 0
    assert shown.out.count("\n  --model ") == shown.out.count("\n  --hook ") == 1
    assert "--features" not in shown.out


@pytest.mark.parametrize("weighted", [False, True])
def test_scores_of_rows_in_pieces_are_those_of_all_rows(weighted, monkeypatch):
    monkeypatch.setattr(sae_scores, "CHUNK", 37)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(300, 8, generator=draw) + 50  # a mean that would swallow the digits of a naive sum
    weights = torch.rand(300, generator=draw) if weighted else None
    sae = fit_sae(x - 50, SAEConfig(architecture="topk", width=16, k=2, steps=60, batch=64)).unscaled(
        torch.full((8,), 50.0), 1.0
    )
    found = score_rows(sae, x.split(90), weights)
    with torch.no_grad():
        rebuilt, latents = sae(x[None])[0], sae.encode(x[None])[0]
    assert found.rows == 300
    assert found.fvu == pytest.approx(metrics.fvu(x, rebuilt), rel=1e-4)
    assert found.fvu_zero == pytest.approx(metrics.fvu(x, rebuilt, about="zero"), rel=1e-4)
    assert found.fvu_weighted == pytest.approx(metrics.fvu(x, rebuilt, weights=weights), rel=1e-4)
    assert found.fvu_zero_weighted == pytest.approx(metrics.fvu(x, rebuilt, about="zero", weights=weights), rel=1e-4)
    assert found.l0 == pytest.approx(metrics.l0(latents))
    assert torch.equal(found.counts, (latents > 0).sum(0).float())
    for typical in typical_rows(sae, x.split(90), found.counts / 300, seed=0):
        column = latents[:, typical.latent]
        best = column.sort(descending=True).values[: min(10, int((column > 0).sum()))]
        torch.testing.assert_close(column[typical.rows], best)


def test_without_rows_scores_are_no_numbers():
    sae = fit_sae(torch.randn(64, 4), SAEConfig(architecture="topk", width=8, k=2, steps=5, batch=16))
    found = score_rows(sae, [])
    assert all(np.isnan(value) for value in (found.fvu, found.fvu_zero, found.fvu_weighted, found.l0))
    assert (found.rows, found.counts.sum()) == (0, 0)


def test_no_transformers_warning_reaches_the_user(flags, run_main, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        ended = run_main(*flags, "--out", tmp_path, "--steps", 2)
    assert (ended.code, ended.err) == (0, "")
