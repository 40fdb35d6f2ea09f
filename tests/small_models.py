"""Random language models of three layers, GPT-2's and Llama's kind, and texts for them."""

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from toolkit.corpora import Document

TEXTS = [
    "the cat sat on the mat, the cat sat",
    "",
    "a mat " * 40,
    "on",
    "the mat<|endoftext|>the cat sat on a mat and sat",
    "cat mat sat " * 9,
]
DOCUMENTS = [Document(f"text {number}", text) for number, text in enumerate(TEXTS)]


def write_small(kind, tokens_from, folder):
    """A model of a kind beside the tokenizer of another folder; returns the folder."""
    tokenizer = AutoTokenizer.from_pretrained(tokens_from)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = _MADE[kind](len(tokenizer))
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _gpt2(vocabulary):
    size = {"n_positions": 32, "n_embd": 16, "n_layer": 3, "n_head": 2}
    # Weights ten times as large as at initialisation, so that every layer has a say.
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **size, initializer_range=0.2))


def _llama(vocabulary):
    size = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 3, "max_position_embeddings": 32}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **size, **heads, initializer_range=0.2))


_MADE = {"gpt2": _gpt2, "llama": _llama}
