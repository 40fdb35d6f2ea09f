"""The folder of a pretrained model: the model, its checkpoints, its card. Whole or absent.

config.json, model.safetensors, tokenizer.json, tokenizer_config.json   the model, as transformers loads it
checkpoints/step_N/                                                     whole models at some steps before the last
embeddings.safetensors                                                  rows at the other steps, the last included
training.json, README.md                                                how it was trained, and its card
"""

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from toolkit.checkpoints import FileCheckpoint
from toolkit.configs import differing
from toolkit.errors import UserError, require
from toolkit.folder_lock import LOCK, FolderLock, take
from toolkit.model_files import SHIPPED, check_model, tensor_names
from toolkit.processes import rank
from toolkit.runs import write_json

_UNFINISHED = ".unfinished"
_STATE = "checkpoint_training.safetensors"
_SCRATCH = (_STATE, "run.json", LOCK)
_EVERY = 30.0


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder while it is written, under the name DIR.unfinished."""

    done: Path
    """The name it gets when it is whole."""
    whole: tuple[int, ...]
    """Steps before the last whose checkpoint is a whole model."""
    lock: FolderLock | None = None
    """Keeps other processes out, in the process that writes."""

    @property
    def path(self) -> Path:
        """Where it is being written."""
        return unfinished(self.done)

    @property
    def checkpoint(self) -> FileCheckpoint:
        """Where the training keeps its state, twice a minute."""
        return FileCheckpoint(self.path / _STATE, _EVERY)

    def keep(self, step: int, model: Any) -> None:
        """Write a checkpoint: a whole model, or its embedding alone."""
        if step in self.whole:
            save_model(model, self.path / "checkpoints" / f"step_{step}")
        else:
            rows = model.get_input_embeddings().weight
            _save({f"step_{step}": rows}, self.path / "checkpoints" / f"step_{step}.safetensors")

    def drop(self) -> None:
        """Leave nothing behind of a training that could not begin."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self.lock is not None:
            self.lock.release()

    def finish(self, model: Any, training: dict[str, Any], card: str) -> Path:
        """Write what is missing, give the folder its name, and drop the training's state."""
        from safetensors.torch import load_file

        save_model(model, self.path)
        alone = sorted((self.path / "checkpoints").glob("step_*.safetensors"), key=lambda path: _step(path.stem))
        if alone:
            _save(
                {name: row for path in alone for name, row in load_file(path).items()},
                self.path / "embeddings.safetensors",
            )
        write_json(self.path / "training.json", training)
        (self.path / "README.md").write_text(card, encoding="utf-8")
        self.path.rename(self.done)
        # Only now: a training killed before it has its name goes on from them.
        alone_or_cut = (*(self.done / "checkpoints").glob("step_*.safetensors"), *self.done.glob("checkpoint_*.tmp"))
        for path in (*alone_or_cut, *map(self.done.joinpath, _SCRATCH)):
            path.unlink(missing_ok=True)
        for cut in self.done.glob(".tokenizer-*"):
            shutil.rmtree(cut, ignore_errors=True)
        if self.lock is not None:
            self.lock.release()
        return self.done


def unfinished(done: Path) -> Path:
    """The name of a folder until it is whole."""
    return done.with_name(done.name + _UNFINISHED)


def refuse_existing(done: Path, *, resume: bool) -> None:
    """Stop before any work where the folder stands already, or an unfinished one that is not to be resumed.

    Raises:
        UserError: it does.
    """
    require(not done.exists(), f"{done} exists: choose another folder with --out, or move it away")
    require(
        resume or not unfinished(done).exists(),
        f"{unfinished(done)} holds a training that was stopped: go on with --resume, or delete it",
    )
    if rank() == 0 and unfinished(done).exists():
        with suppress(OSError):  # a folder that cannot be written is told of where it is opened
            take(unfinished(done))


def open_folder(done: Path, settings: dict[str, Any], whole: tuple[int, ...]) -> ModelFolder:
    """Make DIR.unfinished, or take it up if its settings are the same.

    Raises:
        UserError: it cannot be written, another process is writing it or has finished it since, or it was begun with
            other settings or another text (they are named).
    """
    path = unfinished(done)
    record = path / "run.json"
    try:
        path.mkdir(parents=True, exist_ok=True)
        folder = ModelFolder(done, whole, take(path))
        if done.exists() and not record.exists():  # another process finished it while the text was read here
            shutil.rmtree(path)
        require(not done.exists(), f"{done} exists: choose another folder with --out, or move it away")
        if record.exists():
            changed = differing(json.loads(record.read_text()), settings)
            require(not changed, f"cannot resume {path} with other settings: {'; '.join(changed)}")
        else:
            (path / "checkpoints").mkdir(exist_ok=True)
            write_json(record, settings)
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}; choose another folder with --out") from error
    except json.JSONDecodeError as error:
        raise UserError(f"cannot resume {path}: its run.json is damaged; delete the folder") from error
    return folder


def save_model(model: Any, folder: Path) -> None:
    """Write config.json and model.safetensors: float16 weights that load as float32."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.dtype = "float32"
    model.config.save_pretrained(folder)
    # The head is the embedding, tied: once is enough.
    weights = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    _save(weights, folder / "model.safetensors")


def load_start(folder: str) -> tuple[Any, Any]:
    """The GPT2LMHeadModel (float32) and the tokenizer of a folder, or of a shipped model by name.

    A checkpoint's folder has no tokenizer; that of the model it belongs to is taken.

    Raises:
        UserError: no GPT-2 or no tokenizer there, or a file is damaged.
    """
    from toolkit.pretrain_data import tokenizer_from

    path = SHIPPED / folder if (SHIPPED / folder).is_dir() else Path(folder)
    require((path / "config.json").is_file(), f"no model at {folder}: expected a folder with config.json and weights")
    check_model(str(path))
    model = _load(path)
    for place in (path, path.parent.parent):
        if (place / "tokenizer.json").is_file():
            return model, tokenizer_from(place / "tokenizer.json", model.config.n_positions)
    raise UserError(f"the model at {folder} has no tokenizer.json: text cannot be tokenized for it")


def checkpoint_rows(folder: str | Path) -> dict[int, Float[Tensor, "tokens d"]]:
    """The embedding at each checkpoint of a model's folder, by step, float32: whole models' and those kept alone.

    Raises:
        UserError: the folder is none that `python -m toolkit.pretrain` wrote, or a file in it is damaged.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    folder = SHIPPED / folder if (SHIPPED / folder).is_dir() else Path(folder)
    alone = folder / "embeddings.safetensors"
    require(alone.is_file(), f"{folder} has no {alone.name}: expected a folder that toolkit.pretrain wrote")
    tensor_names(alone)
    found = {_step(name): rows for name, rows in load_file(alone).items()}
    for path in (folder / "checkpoints").glob("step_*/model.safetensors"):
        tensor_names(path)
        with safe_open(path, framework="pt") as file:
            found[_step(path.parent.name)] = file.get_tensor("transformer.wte.weight")
    return {step: found[step].float() for step in sorted(found)}


def _load(path: Path) -> Any:
    import torch
    from transformers import GPT2LMHeadModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        kind = json.loads((path / "config.json").read_text("utf-8")).get("model_type")
        # Of another kind the loader would warn, and draw every weight at random.
        require(kind == "gpt2", f"the model in {path} is of type {kind}: expected a GPT-2, whose training goes on")
        return GPT2LMHeadModel.from_pretrained(path, local_files_only=True, dtype=torch.float32)
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"cannot read the model in {path}: {str(error).splitlines()[0]}") from error


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write float16 tensors to a temporary name and rename it."""
    from safetensors.torch import save_file

    temporary = path.with_suffix(".tmp")
    save_file(
        {name: value.detach().half().cpu().contiguous() for name, value in tensors.items()}, temporary, {"format": "pt"}
    )
    temporary.replace(path)


def _step(name: str) -> int:
    return int(name.removeprefix("step_"))
