"""Text corpora: here, how often each token occurs in one."""

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.errors import UserError, require

_CHUNK = 100_000


def read_text(path: str | Path) -> str:
    """The text of a .txt or .txt.gz file.

    Raises:
        UserError: the file is missing, not readable as UTF-8, or empty.
    """
    path = Path(path)
    require(path.is_file(), f"no text file at {path}: expected a .txt or .txt.gz file")
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} as text: {error}") from error
    require(bool(text.strip()), f"{path} is empty: expected text to count tokens in")
    return text


def unigram(text: str, tokenizer: Any, vocabulary: int, *, smoothing: float = 0.5) -> Float[Tensor, " tokens"]:
    """Smoothed unigram probabilities (count + smoothing) / total, one for each row of the embedding.

    Half a count a token (Jeffreys' prior) keeps unseen tokens in play.
    """
    counts = np.zeros(vocabulary)
    for start in range(0, len(text), _CHUNK):
        ids = tokenizer.encode(text[start : start + _CHUNK], add_special_tokens=False)
        counts += np.bincount(ids, minlength=vocabulary)[:vocabulary]
    return torch.from_numpy((counts + smoothing) / (counts + smoothing).sum()).float()


def effective_size(weights: Float[Tensor, " rows"]) -> float:
    """(sum p)^2 / sum p^2: how many equally weighted rows the weights are worth (Kish 1965)."""
    return (weights.double().sum().square() / weights.double().square().sum()).item()
