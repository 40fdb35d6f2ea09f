"""Tensors kept for going on after an interruption: replaced whole, under a checksum."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor

from toolkit.errors import UserError

_CHECKSUM = "sha256"


class DamagedError(ValueError):
    """A file is not what was written."""


def save_sealed(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors and their checksum to a temporary name and rename it; a failed write leaves nothing."""
    from safetensors.torch import save_file

    kept = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    temporary = path.with_suffix(f".{uuid4().hex}.tmp")
    try:
        save_file(kept, temporary, {_CHECKSUM: _digest(kept)})
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_sealed(path: Path) -> dict[str, Tensor]:
    """What `save_sealed` wrote.

    Raises:
        DamagedError: the file is cut short or has another checksum than it says.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            told = (file.metadata() or {}).get(_CHECKSUM)
            # Cloned, as else they are the file's own pages: what was checked stays what it was.
            found = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedError(str(error)) from error
    if told != _digest(found):
        raise DamagedError("its checksum is wrong")
    return found


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = sha256()
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


@dataclass
class FileCheckpoint:
    """The state of one training, in a safetensors file that is replaced whole."""

    path: Path
    """The file."""
    every: float
    """Least number of seconds between two saves."""
    last: float = -math.inf
    """When it was last written, by a clock that nobody sets; the first state is kept at once."""

    def load(self) -> dict[str, Tensor] | None:
        """The state last saved, or None.

        Raises:
            UserError: the file is damaged.
        """
        if not self.path.exists():
            return None
        try:
            return load_sealed(self.path)
        except DamagedError as error:
            raise UserError(
                f"checkpoint {self.path} is damaged ({error}): delete this file, and --resume begins its stage anew"
            ) from error

    def save(self, state: Callable[[], dict[str, Tensor]]) -> None:
        """Write the state when `every` seconds have passed since the last time, and only if it is finite."""
        if time.monotonic() - self.last < self.every:
            return
        kept = state()
        if not all(bool(value.isfinite().all()) for value in kept.values()):
            return
        save_sealed(kept, self.path)
        self.last = time.monotonic()
