"""Verdicts on a language model whose truth is known: what it computes and reads is its own, a list of words is not."""

import numpy as np
import pytest
import torch
from planted_model import FIRST, FOLDER, WORDS, texts, write_texts

from controls.audit import audit
from controls.axis_causal import Effort
from controls.budgets import Spending
from controls.finders import Labels
from controls.judging import Budget
from toolkit.language import load_model

SPENDING = Spending(3000, 3000, 1500, Budget(199, 99, 39, Effort(16, 250, 16, 199, 2)), 99, 39, 0)


@pytest.fixture(scope="module")
def planted():
    return load_model(str(FOLDER))


def judged(model, folder, kind, label, further=()):
    source = write_texts(folder / f"{kind}.csv", 3000, seed=9, kind=kind)
    found = audit(Labels.of(label), model, source, hook="blocks.1.hook_resid_post", budget=SPENDING, further=further,
                  quiet=True)  # fmt: skip
    return found[0]


def test_the_model_has_learned_what_it_was_to_learn(planted):
    first, between = texts(300, seed=77)
    lines = [" ".join([*(FIRST[f] for f in four), *(WORDS[w] for w in words), "go"])
             for four, words in zip(first, between, strict=True)]  # fmt: skip
    ids = torch.tensor([[0, *planted.tokenizer(line, add_special_tokens=False)["input_ids"]] for line in lines])
    said = planted.bridge(ids)[:, -1].argmax(1).numpy()
    assert (said == planted.tokenizer.convert_tokens_to_ids(["left", "right"])[0] + first.sum(1) % 2).mean() > 0.98


@pytest.mark.slow
def test_a_variable_that_training_computes_and_that_is_read_is_a_model_feature(planted, tmp_path):
    one = judged(planted, tmp_path, "parity", "label=odd", ["interventions.ablate", "weights.gaussian"])
    assert one.verdict == "model"
    assert one.place == "computed / used"
    survived = {outcome.control: outcome.p for outcome in one.evidence.outcomes}
    assert survived["interventions.ablate"] <= 0.05
    assert max(survived["weights.init"], survived["weights.spectrum"]) <= 0.025
    assert one.evidence.curve.on[-2] > 0.5 > one.evidence.curve.on[3]  # by its own length, and by none of it


@pytest.mark.slow
def test_a_list_of_words_is_no_feature_of_the_model(planted, tmp_path):
    one = judged(planted, tmp_path, "list", "label=listed")
    assert one.place.startswith("inherited")
    assert one.verdict not in ("model", "unread")
    assert one.evidence.p_found <= 0.025  # it is there, as in any network
    assert np.isclose(one.evidence.token.effect, 0)
