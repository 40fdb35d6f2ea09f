"""A language model's hook as a subject: rows, labels, the rest and nulls are what the model itself gives."""

import numpy as np
import pytest
import torch

from controls.axis_causal import Effort
from controls.judging import Budget, verdicts
from controls.language_subject import language_subject
from toolkit.errors import UserError
from toolkit.interventions import record, run
from toolkit.labelled import read_labelled
from toolkit.language import load_model

HOOK = "blocks.2.hook_resid_post"


@pytest.fixture(scope="module")
def model():
    return load_model()


@pytest.fixture(scope="module")
def source(data):
    return str(data / "ud_english_ewt" / "dev.conllu.gz")


@pytest.fixture(scope="module")
def subject(model, source):
    return language_subject(
        model, HOOK, source, ["upos=VERB", "ud:upos=PUNCT"], rows=1200, per_document=40, places=60, seed=1
    )


def test_rows_are_the_models_and_labels_those_of_its_words(subject, model):
    rest = subject.downstream
    assert len(subject.activations) >= 1200
    sequence, position = rest.places[7]
    values = record(model, rest.tokens[sequence : sequence + 1, : position + 1], [HOOK])[HOOK]
    torch.testing.assert_close(subject.activations[subject.places[7]], values[0, position], atol=1e-3, rtol=1e-3)
    spelled = [model.tokenizer.decode([i]).strip() for i in subject.tokens]
    dots = np.array([word in (".", ",", "!", "?") for word in spelled])
    assert subject.labels["ud:upos=PUNCT"][dots].mean() > 0.95
    assert subject.labels["upos=VERB"][dots].sum() == 0


def test_the_rest_is_the_models_own(subject, model):
    rest = subject.downstream
    at = torch.tensor([0, 5, 40])
    logits = run(model, rest.tokens).log_softmax(2)
    expected = logits[rest.places[at, 0], rest.places[at, 1]]
    found = rest(subject.activations[torch.from_numpy(subject.places)[at]], at)
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)


def test_nulls_are_other_networks_on_the_same_tokens(subject):
    init = subject.nulls["init"]
    assert init(3).shape == subject.activations.shape
    assert torch.equal(init(3), init(3))
    assert not torch.allclose(init(3), init(4))
    assert not torch.allclose(subject.nulls["spectrum"](3), subject.activations)


def test_verdicts_of_a_language_model_are_given_or_say_what_is_open(subject):
    small = Effort(draws=8, rows=10, drawn_rows=4, matched=39, matched_rows=4)
    found = verdicts(subject, budget=Budget(permutations=99, token_permutations=39, null_seeds=2, effort=small))
    assert [one.evidence.feature for one in found] == ["upos=VERB", "ud:upos=PUNCT"]
    assert all(one.evidence.r > 0.3 for one in found)
    assert all(one.why for one in found if one.verdict == "undecided")


@pytest.mark.parametrize(
    ("feature", "line"),
    [("upos=VERBB", "unknown value of upos 'VERBB': did you mean 'VERB'"), ("uposs=VERB", "unknown layer"),
     ("VERB", "expected LAYER=VALUE")],
)  # fmt: skip
def test_labels_that_are_not_there_are_one_line(feature, line, model, source):
    with pytest.raises(UserError, match=line):
        language_subject(model, HOOK, source, [feature])


def test_an_unknown_hook_is_refused_with_the_nearest(model, source):
    with pytest.raises(UserError, match="did you mean"):
        language_subject(model, "blocks.2.hook_resid_pots", source, ["upos=VERB"])


def test_the_fixture_reads_what_it_should(source):
    assert "upos" in read_labelled(source).word_layers
