"""What one-row experiments fine-tune: a model, text for it, and the model fine-tuned with no row drawn anew."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

from experiments.embedding.texts import Text, loaded, read
from toolkit.devices import resolve
from toolkit.pretrain_config import PretrainConfig
from toolkit.pretraining import initial_model, pretrain


@lru_cache(maxsize=1)
def undisturbed(settings: Any, seed: int) -> Any:
    """The whole model fine-tuned with no row drawn anew: the same for every token."""
    model, config, text = ground(settings, seed)
    config, data = replace(config, lr=settings.lr_all), text.data(validation=text.held_out[: config.context + 1])
    return pretrain(data, config, seed=seed, device=resolve(settings.device), model=model).model


@lru_cache(maxsize=1)
def ground(settings: Any, seed: int) -> tuple[Any, PretrainConfig, Text]:
    """The model, the settings of its fine-tuning, and text enough for that (it is read once) and for measuring."""
    if not settings.model:
        text = read(settings, 40_000, 20_000, seed)
        sizes: Any = {"vocabulary": text.vocabulary, "layers": 1, "width": 32, "heads": 1, "context": 32}
        config = PretrainConfig(**sizes, batch=16, steps=400, lr=1e-2, checkpoints=2)
        model = pretrain(text.data(), config, seed=seed, model=initial_model(config, seed=seed)).model
        size = model.config
    else:
        size = (model := loaded(settings.model)[0]).config
        sizes = {"vocabulary": size.vocab_size, "layers": size.n_layer, "width": size.n_embd, "heads": size.n_head}
        sizes["context"] = size.n_positions
    config = PretrainConfig(**sizes, batch=settings.batch, steps=settings.steps, checkpoints=2)
    # One sequence more than the steps read: an epoch begins at an offset.
    enough = (settings.steps * settings.batch + 2) * size.n_positions
    return model, config, read(settings, enough, settings.held_out, seed + 1)
