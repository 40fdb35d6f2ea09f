"""What pages of latents are made from, against plain loops and an SAE whose truth is known."""

import json

import numpy as np
import pytest
import torch

from toolkit import fit_embedding, latent_events, latent_pages, metrics
from toolkit.activation_report import Stream, rows_shown
from toolkit.activations import harvest
from toolkit.corpora import documents
from toolkit.language import load_embedding, load_model
from toolkit.latent_events import BARS, nearest_by_company, nearest_by_direction, read_events
from toolkit.latent_logits import logit_effects, writes_to_stream
from toolkit.latent_pages import FOLDER, INDEX, Text, Vocabulary, write_latents
from toolkit.sae import SAE, SAEConfig, load_sae

WORDS = ["the", " cat", " sat", "\n", "</script>", " mat", "\u202eb", "on"]


class Words:
    """A tokenizer that only decodes."""

    def __len__(self):
        return len(WORDS)

    def decode(self, ids):
        return "".join(WORDS[i] for i in ids)


def sae_of(encoder, decoder, bias):
    parameters = {"W_enc": encoder[None], "W_dec": decoder[None], "b_enc": bias[None],
                  "b_dec": torch.zeros(1, decoder.shape[1])}  # fmt: skip
    config = SAEConfig(architecture="l1", width=len(decoder))
    return SAE(config, "planted", parameters, torch.zeros(1, 1))


@pytest.fixture(scope="module")
def drawn():
    """A random SAE of 23 latents, 400 rows, what each latent is on each row; latent 7 is dead, two rows tie."""
    draw = torch.Generator().manual_seed(0)
    encoder = torch.randn(23, 9, generator=draw)
    decoder = torch.nn.functional.normalize(encoder + 0.5 * torch.randn(23, 9, generator=draw), dim=1)
    bias = torch.full((23,), -3.0)
    bias[7] = -1000.0
    x = torch.randn(400, 9, generator=draw)
    x[200] = x[100]
    sae = sae_of(encoder, decoder, bias)
    return sae, x, (x @ encoder.mT + bias).relu()


@pytest.fixture(scope="module")
def text():
    draw = np.random.default_rng(0)
    documents = np.sort(draw.integers(0, 30, 400))
    places = np.concatenate([np.arange((documents == number).sum()) for number in np.unique(documents)])
    return Text(documents, places, draw.integers(0, len(WORDS), 400), documents % 5 == 0)


@pytest.fixture(scope="module")
def written(drawn, text, tmp_path_factory):
    """index.json and the latents of all chunks, in pieces and blocks that do not divide anything."""
    folder = tmp_path_factory.mktemp("run") / "latents"
    sae, x, _ = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_events, "_ELEMENTS", 23 * 37)
        patch.setattr(latent_pages, "PER_CHUNK", 10)
        write_latents(folder, sae, x.split(90), text, Words(), None, seed=0)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["chunk-000.json", "chunk-001.json", "chunk-002.json", "index.json"]
    chunks = [json.loads((folder / name).read_text()) for name in names[:3]]
    assert [len(chunk) for chunk in chunks] == [10, 10, 3]
    return json.loads((folder / "index.json").read_text()), [one for chunk in chunks for one in chunk]


def test_columns_are_those_of_a_loop(drawn, written):
    sae, x, latents = drawn
    columns = written[0]["columns"]
    rebuilt, total = sae(x[None])[0], float((latents > 0).sum())
    for latent in range(23):
        values = [float(v) for v in latents[:, latent] if v > 0]
        assert columns["density"][latent] == pytest.approx(len(values) / 400, rel=1e-3)
        assert columns["l0_share"][latent] == pytest.approx(len(values) / total, rel=1e-3)
        assert columns["max"][latent] == pytest.approx(max(values, default=0), rel=1e-3)
        assert columns["mean"][latent] == pytest.approx(np.mean(values or [0]), rel=1e-3)
        without = rebuilt - latents[:, latent, None] * sae.W_dec[0, latent]
        added = metrics.fvu(x, without) - metrics.fvu(x, rebuilt)
        assert columns["fvu"][latent] == pytest.approx(added, rel=2e-3, abs=1e-6)
    assert columns["density"][7] == columns["fvu"][7] == 0


def test_contexts_are_those_of_a_loop(drawn, written, text):
    latents = drawn[2]
    for latent in range(23):
        order = sorted(
            (row for row in range(400) if latents[row, latent] > 0), key=lambda r: -float(latents[r, latent])
        )
        contexts = written[1][latent]["contexts"]
        assert len(contexts) == min(10, len(order))
        for row, one in zip(order, contexts, strict=False):
            around = [r for r in range(max(0, row - 10), min(400, row + 7)) if text.documents[r] == text.documents[row]]
            assert (one["document"], one["position"]) == (text.documents[row], text.positions[row])
            assert one["held_out"] == text.held_out[row]
            assert one["at"] == around.index(row)
            assert one["tokens"] == [WORDS[text.tokens[r]] for r in around]
            assert one["values"] == pytest.approx([float(latents[r, latent]) for r in around], rel=6e-3)
        first = list(dict.fromkeys(WORDS[text.tokens[row]] for row in order[:10]))
        assert written[0]["tokens"][latent] == first[:6]
    assert written[1][7]["contexts"] == []


def test_latents_that_are_all_dead_have_pages(text, tmp_path):
    sae = sae_of(torch.eye(4), torch.eye(4), torch.full((4,), -1000.0))
    write_latents(tmp_path / "latents", sae, [torch.randn(400, 4)], text, Words(), None, seed=0)
    pages = json.loads((tmp_path / "latents" / "chunk-000.json").read_text())
    assert [one["contexts"] for one in pages] == [[]] * 4


@pytest.mark.parametrize("scaled", [False, True])
def test_what_leaving_a_latent_out_costs_is_not_told_of_decoders_that_scale_each_row(scaled, drawn, monkeypatch):
    sae, x, _ = drawn
    decode, lengths = SAE.decode, torch.linspace(1, 3, len(x))[None, :, None]
    monkeypatch.setattr(SAE, "decode", lambda sae, code: decode(sae, code) * (lengths if scaled else 1.0) + 0.5)
    fvu = read_events(sae, [x]).fvu
    assert np.isnan(fvu).all() if scaled else np.isfinite(fvu).all()


def test_tokens_that_decode_to_less_than_they_are_keep_their_names():
    class Pieces:
        names, texts = ["\u2581the", "the", "\u00e2\u0122", "\u00e2\u0125"], ["the", "the", "\ufffd", "\ufffd"]
        __len__ = lambda self: 4  # noqa: E731
        decode = lambda self, ids: self.texts[ids[0]]  # noqa: E731
        convert_ids_to_tokens = lambda self, number: self.names[number]  # noqa: E731

    assert Vocabulary(Pieces())(range(4)) == [" the", "the", "\u00e2\u0122", "\u00e2\u0125"]


def test_histograms_are_those_of_a_loop(drawn, written):
    for latent in range(23):
        values = [float(v) for v in drawn[2][:, latent] if v > 0]
        bars = written[1][latent]["bars"]
        assert sum(bars) == len(values)
        if values:
            edges = np.linspace(0, max(values), BARS + 1)
            assert np.abs(np.cumsum(bars) - np.cumsum(np.histogram(values, edges)[0])).max() <= 1  # a rounding


def test_nearest_latents_are_those_of_a_loop(drawn, written):
    sae, _, latents = drawn
    W, on = sae.W_dec[0], latents > 0
    for latent in range(23):
        others = [other for other in range(23) if other != latent]
        cosine = {other: float(W[latent] @ W[other]) for other in others}
        company = {
            o: float((on[:, latent] & on[:, o]).sum() / max(1, (on[:, latent] | on[:, o]).sum())) for o in others
        }
        for found, truth in (("direction", cosine), ("company", company)):
            near = written[1][latent][found]
            best = sorted(truth.values(), reverse=True)[:8]
            assert [value for _, value in near] == pytest.approx(
                [v for v in best if found == "direction" or v > 0], abs=5e-3
            )
            assert all(truth[other] == pytest.approx(value, abs=5e-3) for other, value in near)
        assert written[0]["columns"]["cosine"][latent] == pytest.approx(max(cosine.values()), abs=1e-3)
    assert written[1][7]["company"] == []


def test_company_is_counted_over_the_first_rows_where_pairs_are_many(drawn, monkeypatch):
    sae, x, latents = drawn
    monkeypatch.setattr(latent_events, "_PAIRS", int((latents[:250] > 0).sum(1).square().sum()))
    on = latents[:250] > 0
    near = nearest_by_company(read_events(sae, [x]), 3)
    other, value = near.of(4)[0]
    assert value == pytest.approx(float((on[:, 4] & on[:, other]).sum() / (on[:, 4] | on[:, other]).sum()))


def test_planted_latents_are_found_where_they_were_put():
    """Orthogonal directions; latent 1 is on at the token " cat" alone, latent 2 wherever 1 is and once more."""
    tokens = np.tile([0, 1, 2, 3], 10)
    values = torch.zeros(40, 4)
    values[:, 0] = 0.25
    values[tokens == 1, 1] = torch.arange(1.0, 11.0)
    values[tokens == 1, 2] = 1.0
    values[39, 2] = 5.0
    eye = torch.eye(4)
    events = read_events(sae_of(eye, eye, torch.zeros(4)), values.split(7))
    assert events.counts.tolist() == [40, 10, 11, 0]
    assert events.top(1, 3).tolist() == [37, 33, 29]
    assert events.top(0, 3).tolist() == [0, 1, 2]  # all alike: the first
    assert events.top(3, 3).tolist() == []
    assert nearest_by_company(events, 3).of(1)[0] == (2, pytest.approx(10 / 11))
    assert events.histograms()[1].sum() == 10
    # All is rebuilt, so what a latent adds is its own share of the variance about the mean, and the mean's if it is on.
    variance = float((values - values.mean(0)).square().sum())
    assert events.fvu == pytest.approx((values.square().sum(0) / variance).numpy(), rel=1e-5)


def test_logit_effects_are_those_of_a_layer_norm_and_a_product_by_hand():
    model, draw = load_model(), torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(5, model.d_model, generator=draw), dim=1)
    found = logit_effects(model, decoder, 7)
    network = model.bridge.original_model
    weight, unembedding = network.transformer.ln_f.weight.detach(), network.lm_head.weight.detach()
    for latent in range(5):
        w = decoder[latent] - decoder[latent].mean()
        effect = unembedding @ (w / w.square().mean().sqrt() * weight)
        effect = (effect - effect.mean()).numpy()
        order = np.argsort(-effect)
        assert found.raised[latent].tolist() == order[:7].tolist()
        assert found.lowered[latent].tolist() == order[::-1][:7].tolist()
        assert found.raised_by[latent].numpy() == pytest.approx(effect[order[:7]], rel=1e-3)
        assert found.lowered_by[latent].numpy() == pytest.approx(effect[order[::-1][:7]], rel=1e-3)
        assert float(found.kurtosis[latent]) == pytest.approx((effect**4).mean() / effect.var() ** 2 - 3, abs=2e-3)


def test_only_hooks_that_reach_the_unembedding_have_logit_effects():
    assert writes_to_stream("blocks.2.hook_resid_post")
    assert writes_to_stream("blocks.0.hook_mlp_out")
    assert not writes_to_stream("blocks.0.ln1.hook_normalized")
    assert not writes_to_stream("blocks.0.attn.hook_z")


def test_a_direction_written_twice_is_its_own_nearest():
    rows = torch.nn.functional.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    rows[31] = rows[4]
    assert nearest_by_direction(rows, 2).of(4)[0] == (31, pytest.approx(1.0, abs=1e-6))


def test_rows_are_whole_documents_those_held_out_first():
    documents = np.repeat(np.arange(10), 5)
    held = np.array([7, 2])
    away = np.isin(documents, held)
    stream = Stream(
        np.zeros((50, 2), np.float16), torch.zeros(2), 1.0, np.flatnonzero(~away), np.flatnonzero(away), held
    )
    some = rows_shown(stream, documents, 20, seed=0)
    assert len(some) == 20
    assert (np.diff(some) > 0).all()
    assert {2, 7} < set(documents[some])
    assert all((documents[some] == document).sum() == 5 for document in set(documents[some]))
    assert rows_shown(stream, documents, 5, seed=0).tolist() == list(range(35, 40))
    assert rows_shown(stream, documents, 10**6, seed=0).tolist() == list(range(50))


def pages_of(run):
    index = json.loads((run / "latents" / "index.json").read_text())
    return index, json.loads((run / "latents" / "chunk-000.json").read_text())


def test_a_fit_to_an_embedding_keeps_the_tokens_of_each_latent(embedding_run, tiny_model):
    embedding, sae = load_embedding(str(tiny_model)), load_sae(str(embedding_run / "sae"))
    latents = sae.encode(embedding.rows[None])[0]
    index, pages = pages_of(embedding_run)
    assert (index["width"], index["rows"], index["logits"]) == (32, len(embedding.rows), "")
    assert index["held_out"] == round(0.2 * len(embedding.rows))
    assert len(pages) == 32
    for latent, page in enumerate(pages):
        order = latents[:, latent].argsort(descending=True, stable=True)[: len(page["contexts"])].tolist()
        assert [one["document"] for one in page["contexts"]] == order
        assert [one["tokens"] for one in page["contexts"]] == [Vocabulary(embedding.tokenizer)([row]) for row in order]
        assert page["logits"] is None
    assert sum(index["columns"]["l0_share"]) == pytest.approx(1, abs=1e-3)


def test_a_fit_to_activations_keeps_contexts_and_logit_effects(fit, tiny_model, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(8):
        (corpus / f"{number}.txt").write_text("the cat sat on a mat and the stat " * (2 + number))
    hook, flags = "blocks.0.hook_resid_post", ("--width", 24, "--k", 3, "--steps", 40, "--batch", 32)
    run = fit("--target", "activations", "--model", tiny_model, "--hook", hook, "--corpus", corpus, "--quiet",
              "--context", 24, "--held-out", 0.25, *flags, "--out", tmp_path / "runs")  # fmt: skip
    model, sae = load_model(str(tiny_model)), load_sae(str(run / "sae"))
    found = harvest(model, documents(str(corpus)), [hook], context=24)
    latents = sae.encode(torch.from_numpy(np.array(found.rows(hook))).float()[None])[0]
    index, pages = pages_of(run)
    assert (index["rows"], index["documents"]) == (len(latents), 8)
    assert 0 < index["held_out"] < len(latents)
    np.testing.assert_allclose(index["columns"]["density"], (latents > 0).float().mean(0), rtol=1e-3)
    effects, vocabulary = logit_effects(model, sae.W_dec[0], 10), Vocabulary(model.tokenizer)
    for latent, page in enumerate(pages):
        assert [text for text, _ in page["logits"]["raised"]] == vocabulary(effects.raised[latent].tolist())
        for one in page["contexts"]:
            row = np.flatnonzero((found.documents == one["document"]) & (found.positions == one["position"])).item()
            assert one["values"][one["at"]] == pytest.approx(float(latents[row, latent]), rel=6e-3)
            assert one["tokens"][one["at"]] == vocabulary([int(found.tokens[row])])[0]
    assert sum(len(page["contexts"]) for page in pages) > 0


def test_a_checkpoint_of_an_embedding_is_the_one_that_is_fitted(fit, run_main, tmp_path):
    sizes = ("--target", "embedding", "--width", 16, "--k", 2, "--steps", 5, "--batch", 64, "--quiet")
    first = fit(*sizes, "--revision", "step_0", "--out", tmp_path / "first")
    scale = json.loads((first / "result.json").read_text())["metrics"]
    last = json.loads((fit(*sizes, "--out", tmp_path / "last") / "result.json").read_text())["metrics"]
    assert scale["fvu"] != last["fvu"]
    ended = run_main(*sizes, "--revision", "step_9", "--out", tmp_path / "none")
    assert (ended.code, ended.err.count("\n")) == (2, 1)


def test_of_a_vocabulary_with_dense_codes_tokens_drawn_at_random_are_shown(fit, tiny_embedding, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_embedding, "EVENTS", 200)
    folder = fit(*tiny_embedding, "--out", tmp_path)
    index = json.loads((folder / FOLDER / INDEX).read_text())
    assert index["rows"] == index["documents"] == 200 // 4
