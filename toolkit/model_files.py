"""Where a language model's files are: the one that ships, a folder, a training checkpoint, the hub.

What a loader would report in a page of text, or fill with random numbers, is refused here in one line.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import UserError, require, unknown

SHIPPED = Path(__file__).parent / "models"
"""The folder of models that come with the package, each by its folder's name."""
DEFAULT = "tiny-gpt2"
"""The model that needs no network."""
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "merges.txt")
_EMBEDDING_MARKS = ("wte", "emb")


@dataclass(frozen=True)
class ModelFiles:
    """What the loaders are given for a model."""

    name: str
    """The folder or hub name."""
    revision: str
    """A hub revision; empty for a folder and for the newest."""
    tokenizer: str | None
    """The folder or hub name its tokenizer is read from; None where there is none."""


def find_model(model: str, revision: str = "") -> ModelFiles:
    """The files of a model, checked as far as they can be before anything is loaded.

    Args:
        model: `tiny-gpt2`, a folder, or a hub name.
        revision: of a folder, one of its `checkpoints`; of a hub name, a branch, tag or commit.

    Raises:
        UserError: no such folder, checkpoint or reachable name, or a folder without weights.
    """
    folder = model_folder(model)
    if folder is None:
        if _looks_like_path(model):
            raise UserError(f"no model at {model}: expected a folder with config.json and weights, or a hub name")
        _check_hub(model, revision)
        return ModelFiles(model, revision, model)
    if revision and revision != _last_step(folder):
        folder = checkpoint_folder(folder, revision)
    _check_folder(folder)
    return ModelFiles(str(folder), "", _tokenizer_of(folder))


def check_model(model: str, revision: str = "") -> None:
    """Refuse a model that cannot be had, before anything is loaded.

    Raises:
        UserError: as `find_model`.
    """
    find_model(model, revision)


def model_folder(model: str) -> Path | None:
    """The folder of a model that is on this machine: one that ships, by its name, or any other; None for a hub name."""
    if model == DEFAULT:
        return SHIPPED / model
    return Path(model) if Path(model).is_dir() else None


def checkpoint_folder(folder: Path, revision: str) -> Path:
    """The folder of a checkpoint kept in a training folder.

    Raises:
        UserError: the folder holds no such checkpoint.
    """
    kept = sorted((path.name for path in (folder / "checkpoints").glob("*") if path.is_dir()), key=checkpoint_order)
    require(bool(kept), f"{folder} holds no checkpoints, so no revision {revision!r}: leave the revision out")
    if revision not in kept:
        raise unknown(f"checkpoint of {folder}", revision, kept)
    return folder / "checkpoints" / revision


def _last_step(folder: Path) -> str | None:
    """The name that the model itself would have among its checkpoints, where a training left its record."""
    try:
        return f"step_{json.loads((folder / 'training.json').read_text())['steps']}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def checkpoint_order(name: str) -> tuple[int, str]:
    """What checkpoint names are sorted by: the number at their end."""
    digits = name.rsplit("_", 1)[-1]
    return (int(digits) if digits.isdecimal() else -1, name)


def not_to_be_had(model: str, error: Exception) -> UserError:
    """The error for a hub name that neither the hub nor its cache gives."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(
        f"model {model!r} is neither a folder here nor to be had from the hub or its cache ({_short(reason)}): "
        f"go online, or give {DEFAULT}, which needs no network, or a folder written by save_pretrained"
    )


def _short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or Path(model).exists()


def _tokenizer_of(folder: Path) -> str | None:
    """The folder itself, or the training folder above `checkpoints` where a checkpoint has no tokenizer of its own."""
    above = [folder.parent.parent] if folder.resolve().parent.name == "checkpoints" else []
    for place in (folder, *above):
        if any(any(place.glob(pattern)) for pattern in _TOKENIZER_FILES):
            return str(place)
    return None


def _check_hub(model: str, revision: str) -> None:
    """Ask the hub once whether it has a name that is not in the cache: the loaders would try for half a minute."""
    import huggingface_hub
    from huggingface_hub import constants

    # Its retries are told to the log as they happen; the one line at the end says it all.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    wanted = revision or None
    try:
        cached = isinstance(huggingface_hub.try_to_load_from_cache(model, "config.json", revision=wanted), str)
        if not cached and not constants.HF_HUB_OFFLINE:
            huggingface_hub.HfApi().model_info(model, revision=wanted, timeout=10)
    except Exception as error:
        raise not_to_be_had(model, error) from error


def _check_folder(folder: Path) -> None:
    """Refuse what the loaders would report in a page of text, or worse, fill with random numbers."""
    require((folder / "config.json").is_file(), f"{folder} holds no model: it has no config.json")
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    require(bool(weights), f"{folder} has no weights: expected *.safetensors beside its config.json")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        _check_shards(folder, index)
    names = {name for path in folder.glob("*.safetensors") for name in tensor_names(path)}
    # The loaders fill a missing embedding with random numbers and go on.
    require(
        not names or any(mark in name for name in names for mark in _EMBEDDING_MARKS),
        f"the weights in {folder} hold no token embedding: expected a tensor such as wte.weight or embed_tokens.weight",
    )


def _check_shards(folder: Path, index: Path) -> None:
    try:
        shards = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(
            f"{index} is damaged: expected a weight_map of tensor names to files; fetch it again"
        ) from error
    missing = sorted(name for name in shards if not (folder / name).is_file())
    require(not missing, f"{folder} lacks weights named in its index: {', '.join(missing)}")


def tensor_names(path: Path) -> list[str]:
    """The names in a safetensors file, which is read far enough to know that it is whole.

    Raises:
        UserError: it is not.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is corrupt or truncated ({error}): fetch it again") from error
