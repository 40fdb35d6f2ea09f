"""Text to training and validation tokens: a byte-pair tokenizer, a split by documents, the order of sequences."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from toolkit import corpora
from toolkit.errors import UserError, require
from toolkit.pretrain_config import PretrainConfig

END = "<|endoftext|>"
"""Ends each document, and begins the next: the tokenizer's only special token, number 0."""


@dataclass(frozen=True)
class TokenData:
    """Training and validation tokens of one corpus, each its documents joined by <|endoftext|>."""

    train: Int[Tensor, " tokens"]
    """Training tokens."""
    validation: Int[Tensor, " validation_tokens"]
    """Tokens of the held-out documents."""
    tokenizer: Any
    """The tokenizer, a transformers PreTrainedTokenizerFast."""
    held_out: tuple[str, ...]
    """Names of the held-out documents."""
    documents: int
    """Number of documents in all."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over both streams: the same text, split and tokenizer give the same one."""
        parts = (self.train.numpy().tobytes(), b"|", self.validation.numpy().tobytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()


def read_tokens(
    sources: Sequence[str], config: PretrainConfig, *, seed: int, tokenizer: Any | None = None
) -> TokenData:
    """Read corpora (as `toolkit.corpora.documents` names them), split them by documents, and tokenize them.

    Without a tokenizer a byte-level byte-pair one is trained on the training documents. The split is made by
    characters, so that it does not depend on the tokenizer.

    Raises:
        UserError: no text, one document only, a vocabulary the corpus cannot fill, too few tokens for the context.
    """
    found = [document for source in sources for document in corpora.documents(source)]
    require(bool(found), "no text: name a corpus with --corpus, a text file, a folder, nltk:NAME or hf:NAME")
    require(
        len(found) > 1,
        "the corpus is one document, and whole documents are held out: part it by lines of <|endoftext|> or give more",
    )
    out = split([len(document.text) for document in found], config.validation, seed=seed)
    require(
        0 < len(out) < len(found),
        f"cannot hold out {config.validation:.0%} of the text in whole documents: {len(found)} documents, the "
        f"shortest of {min(len(d.text) for d in found):,} characters; give more documents or raise --validation",
    )
    train = [document.text for at, document in enumerate(found) if at not in out]
    held = [document for at, document in enumerate(found) if at in out]
    tokenizer = tokenizer or train_tokenizer(train, config)
    held_tokens = joined([document.text for document in held], tokenizer)
    names = tuple(document.name for document in held)
    data = TokenData(joined(train, tokenizer), held_tokens, tokenizer, names, len(found))
    sequences(data.train, config)
    require(
        len(data.validation) > config.context,
        f"the held-out documents have {len(data.validation):,} tokens, too few for one sequence of "
        f"{config.context + 1}: give more text, a smaller --context or a larger --validation",
    )
    return data


def split(sizes: Sequence[int], share: float, *, seed: int) -> set[int]:
    """The documents to hold out: at most `share` of the total size, in random order, those that still fit."""
    left = share * sum(sizes)
    out = set()
    for at in np.random.default_rng([seed, 0x5917]).permutation(len(sizes)):
        if sizes[at] <= left:
            left -= sizes[at]
            out.add(int(at))
    return out


def train_tokenizer(texts: Sequence[str], config: PretrainConfig) -> Any:
    """A byte-level byte-pair tokenizer (Sennrich et al. 2016, on bytes as GPT-2's) with <|endoftext|> as token 0.

    Raises:
        UserError: the texts have too few distinct pairs for the vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    learned.train_from_iterator(texts, trainer, length=len(texts))
    size = learned.get_vocab_size()
    require(
        size == config.vocabulary,
        f"a vocabulary of {config.vocabulary:,} is too large for this corpus, which gives {size:,} tokens: "
        f"use --vocabulary {size} or less, or more text",
    )
    return wrapped(learned, config.context)


def wrapped(tokenizer: Any, context: int) -> Any:
    """A `tokenizers` tokenizer as transformers wants it, with <|endoftext|> at both ends' disposal."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=END, model_max_length=context
    )


def tokenizer_from(file: Path, context: int) -> Any:
    """The tokenizer of a tokenizer.json.

    Raises:
        UserError: it is damaged, or has no <|endoftext|>.
    """
    from tokenizers import Tokenizer

    try:
        learned = Tokenizer.from_str(file.read_text("utf-8", "replace"))
    except Exception as error:  # tokenizers has no type of its own for it
        raise UserError(f"{file} is damaged: {' '.join(str(error).split())}") from error
    require(learned.token_to_id(END) is not None, f"{file} has no {END}: it must part the documents")
    return wrapped(learned, context)


def joined(texts: Sequence[str], tokenizer: Any) -> Int[Tensor, " tokens"]:
    """Each text's tokens with <|endoftext|> before it, and one at the very end, in one stream."""
    end = tokenizer.eos_token_id
    backend = tokenizer.backend_tokenizer
    parts: list[Any] = []
    for encoded in backend.encode_batch(list(texts), add_special_tokens=False):
        parts += [[end], encoded.ids]
    return torch.from_numpy(np.concatenate([np.asarray(part, dtype=np.int64) for part in [*parts, [end]]]))


def sequences(tokens: Int[Tensor, " tokens"], config: PretrainConfig) -> int:
    """Training sequences an epoch: one fewer than fit, because each epoch starts at an offset of its own.

    Raises:
        UserError: fewer than a batch of them.
    """
    count = (len(tokens) - 1) // config.context - 1
    require(
        count >= config.batch,
        f"the corpus is too small: {len(tokens):,} training tokens give {max(count, 0)} sequences of "
        f"{config.context + 1} tokens, fewer than a batch of {config.batch}; give more text, or a smaller --context "
        "or --batch",
    )
    return count


def batch_at(tokens: Int[Tensor, " tokens"], config: PretrainConfig, *, seed: int, step: int) -> Int[Tensor, "batch t"]:
    """The sequences of one step, (batch, context + 1): a function of (seed, epoch, step) and nothing else.

    In each epoch the stream is cut anew, at an offset below the context, and its pieces are shuffled; those left
    over from the last whole batch wait for another epoch's order. Neighbours share a token: one's last target is the
    next one's first input.
    """
    count = sequences(tokens, config)
    epoch, within = divmod(step, count // config.batch)
    offset, order = _epoch(seed, epoch, count, config.context)
    starts = offset + config.context * order[within * config.batch : (within + 1) * config.batch]
    return tokens[torch.from_numpy(starts)[:, None] + torch.arange(config.context + 1)]


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, count: int, context: int) -> tuple[int, np.ndarray]:
    draw = np.random.default_rng([seed, 0xE90C, epoch])
    return int(draw.integers(context)), draw.permutation(count)


def total_steps(tokens: Int[Tensor, " tokens"], config: PretrainConfig) -> int:
    """Optimiser steps: `steps`, or as many as predict every training token `epochs` times on average."""
    return config.steps or math.ceil(config.epochs * len(tokens) / (config.batch * config.context))


def windows(tokens: Int[Tensor, " tokens"], context: int, batch: int) -> Iterator[Int[Tensor, "batch t"]]:
    """The stream in batches of (at most `batch`, context + 1) tokens: every token but the first is a target once."""
    whole = (len(tokens) - 1) // context
    if whole:
        cut = tokens[: whole * context + 1].unfold(0, context + 1, context)  # (windows, context + 1)
        yield from cut.split(batch)
    rest = tokens[whole * context :]
    if len(rest) > 1:
        yield rest[None]
