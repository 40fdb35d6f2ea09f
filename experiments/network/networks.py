"""Which network is asked: the trained one, a checkpoint of its training, or one with weights drawn anew."""

import re
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

from controls.initialised import initialised
from controls.model_weights import drawn_anew
from toolkit.errors import unknown
from toolkit.language import LanguageModel, load_model
from toolkit.model_files import model_folder
from toolkit.weight_processing import process_weights

TRAINED, RANDOM, SPECTRUM = "trained", "random", "spectrum"
"""As it is; before training; every matrix with its singular values and other singular vectors."""
FIRST = "step_0"
"""The checkpoint before training, where a training kept it."""


def network(name: str, kind: str = TRAINED, *, seed: int = 0, processing: tuple[str, ...] = ()) -> LanguageModel:
    """A model as it is, or one of its architecture.

    Args:
        name: hub name or folder.
        kind: `trained`; `random`, before training: its own checkpoint where it is kept, else its architecture's own
            draw; `spectrum`, weights with the singular values of each matrix alone; or a checkpoint such as step_424.
        processing: what is done to its weights, whichever they are, by names of `load_model`'s options.

    Raises:
        UserError: an unknown kind; a model or checkpoint that is not there; processing that it does not bear.
    """
    return _network(name, kind, seed if kind in (RANDOM, SPECTRUM) else 0, processing)


@lru_cache(maxsize=2)
def _network(name: str, kind: str, seed: int, processing: tuple[str, ...]) -> LanguageModel:
    options: dict[str, Any] = dict.fromkeys(processing, True)
    load = partial(load_model, name, **options)
    if kind == TRAINED:
        return load()
    if kind == SPECTRUM:
        drawn = drawn_anew(load_model(name), "spectrum", seed=seed)
        if processing:  # not before: biases would keep what was folded into them
            process_weights(drawn.name, drawn.bridge, processing)
        return replace(drawn, processing=processing)
    if re.fullmatch(r"step_\d+", kind):
        return load(revision=kind)
    if kind != RANDOM:
        raise unknown("network", kind, (TRAINED, RANDOM, SPECTRUM, FIRST))
    return load(revision=FIRST) if keeps_first(name) else initialised(load(), seed=seed)


def keeps_first(name: str) -> bool:
    """Whether its folder has the weights that its training began with."""
    folder = model_folder(name)
    return folder is not None and (folder / "checkpoints" / FIRST).is_dir()
