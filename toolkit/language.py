"""Language models by hub name or folder. The only importer of transformer_lens."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.errors import UserError, require

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "merges.txt")


@dataclass(frozen=True)
class Embedding:
    """A model's token embedding."""

    name: str
    """Hub name or folder it came from."""
    rows: Float[Tensor, "tokens d"]
    """One float32 row a token."""
    tokenizer: Any
    """The model's tokenizer, or None where it has none."""

    def token(self, index: int) -> str:
        """A token's text with unprintable characters escaped, or its number without a tokenizer."""
        if self.tokenizer is None or index >= len(self.tokenizer):
            return f"#{index}"
        return ascii_safe(self.tokenizer.decode([index]))


def ascii_safe(text: str) -> str:
    """Text that cannot move a terminal's cursor or reverse its direction: unprintable characters are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def load_embedding(model: str) -> Embedding:
    """Boot a model through TransformerBridge and keep its embedding W_E and tokenizer.

    Nothing is looked up on the network for a folder. A hub name is: it is what the user asked for.

    Raises:
        UserError: no such folder or reachable name, a folder without weights, a damaged file, NaN in the rows.
    """
    check_model(model)
    bridge = _boot(model)
    rows = bridge.W_E.detach().to(torch.float32).cpu().clone()
    bad = (~rows.isfinite()).any(1).nonzero()
    require(
        len(bad) == 0, f"the embedding of {model} holds NaN or infinity, first in row {int(bad[0]) if len(bad) else 0}"
    )
    return Embedding(model, rows, _tokenizer(model, bridge))


@dataclass(frozen=True)
class Network:
    """A whole language model, to be run."""

    network: Any
    """The Hugging Face model behind the bridge, float32: `network(input_ids=...).logits`."""
    tokenizer: Any
    """The model's tokenizer, or None where it has none."""


def load_network(model: str) -> Network:
    """Boot a model through TransformerBridge and keep the Hugging Face model behind it.

    Raises:
        UserError: as `load_embedding`.
    """
    check_model(model)
    bridge = _boot(model)
    return Network(bridge.original_model, _tokenizer(model, bridge))


def _tokenizer(model: str, bridge: Any) -> Any:
    # Without tokenizer files the loaders make up an empty tokenizer, whose tokens would mean nothing.
    has_tokenizer = not Path(model).is_dir() or any(any(Path(model).glob(p)) for p in _TOKENIZER_FILES)
    return getattr(bridge, "tokenizer", None) if has_tokenizer else None


def check_model(model: str) -> None:
    """Refuse a model that cannot be had, before anything is loaded.

    Raises:
        UserError: no such folder or reachable name, or a folder without weights.
    """
    if Path(model).is_dir():
        _check_folder(Path(model))
    elif _looks_like_path(model):
        raise UserError(f"no model at {model}: expected a folder with config.json and weights, or a hub name")
    else:
        _check_hub(model)


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or Path(model).exists()


def _check_hub(model: str) -> None:
    """Ask the hub once whether it has a name that is not in the cache: the loaders would try for half a minute."""
    import huggingface_hub
    from huggingface_hub import constants

    # Its retries are told to the log as they happen; the one line at the end says it all.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        cached = isinstance(huggingface_hub.try_to_load_from_cache(model, "config.json"), str)
        if not cached and not constants.HF_HUB_OFFLINE:
            huggingface_hub.HfApi().model_info(model, timeout=10)
    except Exception as error:
        raise _not_to_be_had(model, error) from error


def _not_to_be_had(model: str, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(
        f"model {model!r} is neither a folder here nor to be had from the hub or its cache ({_short(reason)}): "
        "go online, or give a folder written by save_pretrained"
    )


def _boot(model: str) -> Any:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformer_lens.model_bridge import TransformerBridge
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        return TransformerBridge.boot_transformers(model, device="cpu")
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if Path(model).is_dir():
            raise UserError(f"cannot read the model in {model}: {first}") from error
        raise _not_to_be_had(model, error) from error


def _short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _check_folder(folder: Path) -> None:
    """Refuse what the loaders would report in a page of text, or worse, fill with random numbers."""
    require((folder / "config.json").is_file(), f"{folder} holds no model: it has no config.json")
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    require(bool(weights), f"{folder} has no weights: expected *.safetensors beside its config.json")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        _check_shards(folder, index)
    names = {name for path in folder.glob("*.safetensors") for name in _tensor_names(path)}
    # The loaders fill a missing embedding with random numbers and go on.
    require(
        not names or any(mark in name for name in names for mark in _EMBEDDING_MARKS),
        f"the weights in {folder} hold no token embedding: expected a tensor such as wte.weight or embed_tokens.weight",
    )


_EMBEDDING_MARKS = ("wte", "emb")


def _check_shards(folder: Path, index: Path) -> None:
    try:
        shards = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"{index} is damaged: expected a weight_map of tensor names to files; fetch it again"
        ) from error
    missing = sorted(name for name in shards if not (folder / name).is_file())
    require(not missing, f"{folder} lacks weights named in its index: {', '.join(missing)}")


def _tensor_names(path: Path) -> list[str]:
    """The names in a safetensors file, which is read far enough to know that it is whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is corrupt or truncated ({error}): fetch it again") from error
