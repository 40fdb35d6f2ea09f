"""N1: words and their rows are those of the corpus and the model; sums of the report by hand; planted truth."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments import registry
from experiments.network import control_tasks_report, planted_words, words
from experiments.network.networks import network
from toolkit.activations import harvest
from toolkit.corpora import Document
from toolkit.errors import UserError
from toolkit.labelled import read_labelled
from toolkit.language import load_model

N1 = registry.chosen(["control-tasks"])[0]


def written(folder, documents=6, sentences=4):
    """A treebank of three-word sentences: document and sentence can be read off the words."""
    lines = []
    for d in range(documents):
        for s in range(sentences):
            forms = [(f"Walker{d}", "PROPN"), (f"runs{s}", "VERB"), (".", "PUNCT")]
            lines += [f"# newdoc id = d{d}"] if s == 0 else []
            lines += [f"# text = {forms[0][0]} {forms[1][0]} ."]
            lines += [f"{i}\t{f}\t_\t{tag}\t_\t_\t{i - 1}\tdep\t_\t_" for i, (f, tag) in enumerate(forms, 1)]
            lines += [""]
    path = folder / "trees.conllu"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def settings(tmp_path):
    base = N1.scales["default"]
    return replace(base, corpus=written(tmp_path), replicates=2, rows=18, words=9, layers=2)


def test_parts_share_no_document_and_take_the_beginnings_of_all(settings):
    labelled = read_labelled(settings.corpus)
    parts = [words.texts_of(labelled, settings, part, 0) for part in range(2)]
    owners = [set(labelled.documents[part].tolist()) for part in parts]
    assert owners[0] | owners[1] <= set(range(6))
    assert not owners[0] & owners[1]
    for part, owner in zip(parts, owners, strict=True):
        assert len(owner) == 2  # of nine words each, three sentences
        assert [t % 4 for t in part] == [0, 1, 2] * 2
    assert [words.texts_of(labelled, settings, part, 0).tolist() for part in range(2)] == [p.tolist() for p in parts]
    assert any(words.texts_of(labelled, settings, 0, seed).tolist() != parts[0].tolist() for seed in range(1, 6))
    with pytest.raises(UserError, match="54 words in the beginnings of its documents: 60 needed"):
        words.texts_of(labelled, replace(settings, rows=30), 0, 0)


def test_a_row_is_that_of_its_words_last_token_at_each_layer(settings):
    found = words.read_words(settings, "trained", 1, 0)
    assert sorted(found.layers) == [0, 2, 4]
    assert len(found.labels) == 18
    labelled, model = read_labelled(settings.corpus), load_model("tiny-gpt2")
    texts = words.texts_of(labelled, settings, 1, 0)
    at = 0
    for text in (labelled.texts[t] for t in texts):
        ids = model.tokenizer(text, add_special_tokens=False).input_ids
        ends = np.cumsum([len(model.tokenizer.decode([i])) for i in ids])
        rows = harvest(model, [Document("one", text)], ["hook_embed", "blocks.3.hook_resid_post"])
        for word, tag in zip(text.split(), ("PROPN", "VERB", "PUNCT"), strict=True):
            last = int(np.flatnonzero(ends == text.index(word) + len(word))[0])
            assert (found.types[at], found.labels[at]) == (word, tag)
            assert found.documents[at] == labelled.documents[texts[at // 3]]
            np.testing.assert_allclose(found.layers[0][at], rows.rows("hook_embed")[last], atol=1e-3)
            np.testing.assert_allclose(found.layers[4][at], rows.rows("blocks.3.hook_resid_post")[last], atol=2e-2)
            at += 1


def test_the_model_before_training_is_its_own_step_0_or_its_architectures_draw(settings, tiny_model):
    begun = load_model("tiny-gpt2", revision="step_0")
    assert network("tiny-gpt2", "random", seed=5).weights_hash == begun.weights_hash
    drawn = [network(str(tiny_model), "random", seed=seed).weights_hash for seed in (5, 5, 6)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert network(str(tiny_model), "trained", seed=5).weights_hash not in drawn
    both = [words.read_words(settings, arm, 0, 0) for arm in ("trained", "random")]
    assert both[0].types.tolist() == both[1].types.tolist()
    assert not np.allclose(both[0].layers[4], both[1].layers[4])


def test_a_corpus_without_parts_of_speech_is_one_line(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    assert "has no parts of speech: --corpus takes Universal Dependencies" in words.lacking(str(tmp_path))
    assert "has no parts of speech" in words.lacking("nltk:brown")
    written(tmp_path)
    assert words.lacking(str(tmp_path)) == words.lacking(str(tmp_path / "trees.conllu")) == words.lacking("") == ""


def test_planted_words_hold_the_part_of_speech_only_after_training_and_the_type_always():
    trained, random, flat = (planted_words.plant_words(arm, 0, 0, signal=signal)
                             for arm, signal in (("trained", 1.0), ("random", 1.0), ("trained", 0.0)))  # fmt: skip
    other = planted_words.plant_words("trained", 1, 0, signal=1.0)
    assert len(set(zip(trained.types.tolist(), trained.labels.tolist(), strict=True))) == len(
        set(trained.types.tolist())
    )
    assert not np.array_equal(trained.types, other.types)
    assert trained.types.tolist() == random.types.tolist() == flat.types.tolist()
    circle = np.exp(2j * np.pi * trained.labels / planted_words.CLASSES)
    for planted, strength in ((trained, 1.0), (random, 0.0), (flat, 0.0)):
        first, second = planted.layers[1][:, 0], planted.layers[1][:, 1]
        assert np.mean((first + 1j * second) * circle.conj()).real == pytest.approx(strength, abs=0.02)
        kinds = np.stack([planted.layers[1][planted.types == t].mean(0)[2:] for t in range(10)])
        assert np.linalg.norm(kinds, axis=1) == pytest.approx(1, abs=0.1)


def one(accuracy, control, bits, coded):
    return torch.tensor([accuracy, control, 1.0, bits, coded, 2.0], dtype=torch.float64)


@pytest.fixture
def report():
    """Two parts, two layers: by hand."""
    cells, found = [], []
    for part in range(2):
        for arm in ("trained", "random"):
            cells.append({"arm": arm, "replicate": part})
            gap = 0.0 if arm == "trained" else 0.01 + part / 1000
            sizes = {"sizes": torch.tensor([100, 20, 5, 3])}
            scores = {"linear": (0.9, 0.6), "rank-limited": (0.88, 0.5), "MLP": (0.92 - gap, 0.8 + part / 100)}
            each = {f"0.{name}": one(a, c, 1.0 + 10 * gap, 1.5) for name, (a, c) in scores.items()}
            each |= {f"1.{name}": one(a - 10 * gap, c, 0.5, 1.5 + part / 10) for name, (a, c) in scores.items()}
            found.append(sizes | each)
    return cells, found


def test_the_report_by_hand(report):
    outcome = control_tasks_report.summarise(N1.scales["smoke"], *report)
    by_claim = {check.claim: check for check in outcome.checks}
    linear, limited, dearer, alike, bits = outcome.checks
    assert len(by_claim) == 5
    assert linear.measured == pytest.approx(0.3 - (0.92 - 0.805))
    assert limited.measured == pytest.approx(0.38 - 0.3)
    assert dearer.measured == pytest.approx((0.5 + 1.05) / 2)
    assert alike.measured == pytest.approx(0.0105)
    assert bits.measured == pytest.approx(0.105)
    assert alike.passed
    assert outcome.metrics["nearest"] == ["embedding", "embedding"]
    assert "are nearest (embedding), those of a part are 0.920 and 0.909 by the MLP" in outcome.conclusion
    assert outcome.metrics["trained, block 1, MLP"]["selectivity"] == pytest.approx([0.12, 0.11])
    rows = outcome.table.splitlines()
    assert len(rows) == 13
    assert rows[1].startswith("trained, embedding, linear")
    assert rows[-1].startswith("random, block 1, MLP")
    names = [[series.name for series in panel.series] for panel in outcome.figures[0].panels]
    assert names[:3] == [["linear", "rank-limited", "MLP"]] * 3
    assert names[3:] == [["trained", "random", "trained, control task", "random, control task"]] * 2
    assert outcome.figures[0].panels[4].series[2].y == pytest.approx([1.5, 1.55])


def test_a_part_does_not_choose_the_layer_it_is_measured_at(report):
    cells, found = report
    gaps = {0: (0.0, 0.3), 1: (0.1, 0.1)}  # by layer and part: the embedding is alike in the first part alone
    planted = []
    for cell, each in zip(cells, found, strict=True):
        new = dict(each)
        for layer in (0, 1):
            new[f"{layer}.MLP"] = each[f"{layer}.MLP"].clone()
            new[f"{layer}.MLP"][0] = 0.9 - (gaps[layer][cell["replicate"]] if cell["arm"] == "random" else 0.0)
        planted.append(new)
    outcome = control_tasks_report.summarise(N1.scales["smoke"], cells, planted)
    assert outcome.metrics["nearest"] == ["block 1", "embedding"]
    assert outcome.checks[3].measured == pytest.approx((0.1 + 0.3) / 2)
    one_part = [(c, f) for c, f in zip(cells, planted, strict=True) if c["replicate"] == 0]
    assert not control_tasks_report.summarise(N1.scales["smoke"], *zip(*one_part, strict=True)).checks[3].passed


def test_accuracies_that_tell_trained_from_random_fail_the_check(report):
    cells, found = report
    apart = [
        {k: v - 0.1 if cell["arm"] == "random" and k != "sizes" else v for k, v in each.items()}
        for cell, each in zip(cells, found, strict=True)
    ]
    *_, alike, _ = control_tasks_report.summarise(N1.scales["smoke"], cells, apart).checks
    assert not alike.passed
