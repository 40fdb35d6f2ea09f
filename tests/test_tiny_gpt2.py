"""The GPT-2 that ships: what it weighs, what it holds, and that it has learned what its card says."""

import json
from itertools import pairwise

import pytest
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel

from toolkit.corpora import documents
from toolkit.pretrain_card import card
from toolkit.pretrain_data import joined, split
from toolkit.pretrain_folder import SHIPPED, checkpoint_rows
from toolkit.pretraining import validation_loss
from toolkit.token_baselines import baselines

FOLDER = SHIPPED / "tiny-gpt2"
TEXT = (
    "nltk:movie_reviews", "nltk:subjectivity", "nltk:inaugural", "nltk:state_union", "nltk:genesis/english-*",
    "text/wikitext2_valid.txt.gz", "text/wikitext2_test.txt.gz", "text/tiny_shakespeare.txt.gz",
    "ud_english_ewt/train.conllu.gz",
)  # fmt: skip
"""What it was trained on, in order; the paths are those of the data folder."""


@pytest.fixture(scope="module")
def record():
    return json.loads((FOLDER / "training.json").read_text())


@pytest.fixture(scope="module")
def network():
    return GPT2LMHeadModel.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def tokens(data, record):
    """Its training and validation tokens, made again from the corpora."""
    patch = pytest.MonkeyPatch()
    nltk_data = pytest.importorskip("nltk.data")
    patch.setattr(nltk_data, "path", [str(data / "nltk")])
    found = [d for name in TEXT for d in documents(name if name.startswith("nltk:") else data / name)]
    patch.undo()
    held = split([len(d.text) for d in found], record["config"]["validation"], seed=record["seed"])
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    texts = [[d.text for at, d in enumerate(found) if (at in held) == wanted] for wanted in (False, True)]
    return [joined(part, tokenizer) for part in texts]


def test_all_of_it_is_under_15_megabytes():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl")]


def test_it_is_a_gpt2_of_the_stated_size(network, record):
    size = network.config
    assert (size.n_layer, size.n_embd, size.n_head, size.n_positions, size.vocab_size) == (4, 128, 4, 256, 4096)
    assert network.lm_head.weight is network.transformer.wte.weight
    assert network.dtype == torch.float32
    assert record["config"]["layers"] == 4
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert len(tokenizer) == 4096
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == size.bos_token_id == size.eos_token_id == 0


def test_it_keeps_eight_checkpoints_from_step_0_on(record):
    rows = checkpoint_rows(FOLDER)
    steps = list(rows)
    assert steps == record["validation"]["steps"]
    assert len(steps) >= 8
    assert steps[0] == 0
    assert steps[-1] == record["steps"]
    assert all(each.shape == (4096, 128) and each.isfinite().all() for each in rows.values())
    changes = [(rows[a] - rows[b]).norm().item() for a, b in pairwise(steps)]
    assert min(changes) > 0


def test_three_checkpoints_are_whole_models(network, record):
    whole = sorted((FOLDER / "checkpoints").iterdir(), key=lambda path: int(path.name.removeprefix("step_")))
    assert len(whole) == 2
    assert whole[0].name == "step_0"
    tokens = torch.arange(1, 200)
    losses = [validation_loss(GPT2LMHeadModel.from_pretrained(path), tokens, context=199) for path in whole]
    assert losses[0] == pytest.approx(8.318, abs=0.1)  # log 4096: it knows nothing yet
    assert 0 < int(whole[1].name.removeprefix("step_")) < record["steps"]


def test_it_has_learned(record):
    assert record["epochs"] >= 3
    assert record["final"]["nats_as_float16"] < record["baselines"]["unigram"] - 1.5
    assert record["final"]["nats_as_float16"] < record["baselines"]["bigram"]
    losses = record["validation"]["nats"]
    assert losses == sorted(losses, reverse=True)


def test_its_card_states_its_record(record):
    shown = (FOLDER / "README.md").read_text("utf-8")
    assert shown.startswith(card(record))
    assert not [c for c in record["corpora"] if c["licence"] == "not stated"]
    assert "/work" not in shown + (FOLDER / "training.json").read_text()


@pytest.mark.slow
def test_its_loss_is_what_the_card_says(network, tokens, record):
    train, validation = tokens
    assert (len(train), len(validation)) == (record["tokens"]["train"], record["tokens"]["validation"])
    found = validation_loss(network, validation, context=256)
    assert found == pytest.approx(record["final"]["nats_as_float16"], abs=1e-4)
    simple = baselines(train, validation, 4096)
    assert simple.unigram == pytest.approx(record["baselines"]["unigram"], abs=1e-6)
    assert simple.bigram == pytest.approx(record["baselines"]["bigram"], abs=1e-6)


@pytest.mark.slow
def test_shuffled_text_is_lost_on_it(network, tokens, record):
    """Its gain is from order: without it the loss is no better than the unigram's."""
    part = tokens[1][:20_000]
    shuffled = part[torch.randperm(len(part), generator=torch.Generator().manual_seed(0))]
    assert validation_loss(network, part, context=256) < record["baselines"]["unigram"] - 1.4
    assert validation_loss(network, shuffled, context=256) > record["baselines"]["unigram"]


def test_it_goes_on_with_a_text_in_its_own_manner(network):
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    ids = tokenizer("the film is one of the", return_tensors="pt").input_ids
    probable = network(input_ids=ids).logits[0, -1].topk(20).indices
    assert {" most", " best"} & {tokenizer.decode([token]) for token in probable}
