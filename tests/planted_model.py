"""A small GPT-2 trained on a language whose truth is known: the parity of its first four words decides what follows.

Texts are "red blue red red w31 w7 ... go right" and "red blue blue red w12 w31 ... go left", the words between drawn
from many. To say what follows "go" a network has to work out the parity, which no network does by chance: a variable
that training puts there and that is read. On what arbitrary list the last word between stands is in any network, by
that word itself; what is said after such a word was never trained.

Its weights are kept in tests/planted_gpt2: `python tests/planted_model.py` trains them anew, and another machine's
rounding ends elsewhere.
"""

import csv
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

WORDS = [f"w{number}" for number in range(300)]
FIRST, LAST = ("red", "blue"), ("left", "right")
LENGTH = 4
"""Words between the first four and "go"."""
VOCABULARY = ["<end>", "go", *FIRST, *LAST, *WORDS]
STEPS, BATCH = 1000, 128
FOLDER = Path(__file__).parent / "planted_gpt2"


def texts(count, *, seed):
    """First words, 0 or 1, and the words between: (count, 4), (count, LENGTH)."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, (count, 4)), rng.integers(0, len(WORDS), (count, LENGTH))


def lopsided_texts(count, *, seed):
    """As `texts`, each with a share of blue of its own: under fair coins alone every part of a parity is chance, and
    three trainings in eight find nothing in 1,200 steps; so all eight do in 800."""
    rng = np.random.default_rng(seed)
    return (rng.random((count, 4)) < rng.random((count, 1))).astype(int), rng.integers(0, len(WORDS), (count, LENGTH))


def write_model(folder):
    """Train it and write it with its tokenizer."""
    known = {word: number for number, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<end>", eos_token="<end>", bos_token="<end>"
    ).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        size = {"n_positions": 16, "n_embd": 48, "n_layer": 2, "n_head": 2, "vocab_size": len(VOCABULARY)}
        size["initializer_range"] = 0.1  # at GPT-2's own .02 parity is not learned in these steps
        ends = {"bos_token_id": 0, "eos_token_id": 0}
        network = GPT2LMHeadModel(GPT2Config(**size, **ends, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0))
        _train(network)
    network.eval().save_pretrained(folder)


def _train(network):
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=STEPS)
    for step in range(STEPS):
        first, between = lopsided_texts(BATCH, seed=[1, step])
        odd = first.sum(1, keepdims=True) % 2
        ids = np.concatenate([np.zeros((BATCH, 1), int), 2 + first, 6 + between, np.ones((BATCH, 1), int), 4 + odd], 1)
        tokens = torch.from_numpy(ids)
        answers = torch.where(torch.arange(tokens.shape[1]) == tokens.shape[1] - 1, tokens, -100)  # the rest is chance
        loss = network(tokens, labels=answers).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def write_texts(file, count, *, seed, kind):
    """A labelled table: "parity", texts up to "go" labelled by their first four words; "list", up to a word between,
    labelled by whether that one is on an arbitrary list."""
    first, between = texts(count, seed=seed)
    listed = np.random.default_rng(5).random(len(WORDS)) < 0.5
    with file.open("w", newline="") as out:
        table = csv.writer(out)
        table.writerow(["text", "label"])
        for four, words in zip(first, between, strict=True):
            said = [*(FIRST[f] for f in four), *(WORDS[w] for w in words)]
            if kind == "parity":
                table.writerow([" ".join([*said, "go"]), "odd" if four.sum() % 2 else "even"])
            else:
                table.writerow([" ".join(said), "listed" if listed[words[-1]] else "other"])
    return str(file)


if __name__ == "__main__":
    write_model(FOLDER)
