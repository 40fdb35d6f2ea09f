"""Language models by hub name or folder. The only importer of transformer_lens.

```python
from toolkit.language import load_model
model = load_model("tiny-gpt2")                     # or a hub name, a folder, a training checkpoint
model.bridge(model.tokenizer("A cat sat", return_tensors="pt").input_ids)      # logits, as Hugging Face's
```
"""

import os
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.devices import resolve
from toolkit.errors import UserError, require, unknown
from toolkit.model_files import (
    DEFAULT,
    ModelFiles,
    check_model,
    checkpoint_order,
    find_model,
    model_folder,
    not_to_be_had,
    tensor_names,
)
from toolkit.weight_processing import (
    CENTRE_UNEMBED,
    CENTRE_WRITING,
    FOLD_LAYER_NORM,
    FOLD_VALUE_BIASES,
    process_weights,
)

__all__ = [
    "Embedding",
    "LanguageModel",
    "Network",
    "ascii_safe",
    "check_model",
    "load_embedding",
    "load_model",
    "load_network",
    "with_network",
]

EMBEDDINGS = "embeddings.safetensors"
"""In a training folder: embeddings at more checkpoints than whole models are kept of, by checkpoint name."""


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


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A whole language model, to be run, hooked and changed. In float32, without dropout."""

    name: str
    """`tiny-gpt2`, the hub name or the folder it came from."""
    bridge: Any
    """The TransformerBridge: `bridge(tokens)` are logits (batch, positions, vocabulary)."""
    tokenizer: Any
    """The model's tokenizer, or None where it has none."""
    revision: str = ""
    """The checkpoint of the folder or revision of the hub; empty for the model itself."""
    processing: tuple[str, ...] = ()
    """What was done to the weights after loading, by the names of `load_model`'s options."""
    device: str = "cpu"
    """Where the weights are."""

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.bridge.cfg.d_model)

    @property
    def context(self) -> int:
        """Tokens in the longest input."""
        return int(self.bridge.cfg.n_ctx)

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding: token ids are below it."""
        return int(self.bridge.cfg.d_vocab)

    @cached_property
    def hook_names(self) -> tuple[str, ...]:
        """Hooks that are switched on, TransformerLens's names and the bridge's own, in the order of the bridge."""
        return tuple(name for name in self.bridge.hook_dict if self.bridge._gated_hook_reason(name) is None)

    @property
    def weights_hash(self) -> str:
        """sha256 over names, shapes and bytes of the weights as they are now, in float32."""
        digest = sha256()
        for name, weight in sorted(self.bridge.state_dict().items()):
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
            digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def check_hook(self, hook: str) -> None:
        """Refuse a hook that this model has not.

        Raises:
            UserError: with the nearest name of its block.
        """
        if hook not in self.hook_names:
            block = hook.split(".")[:2]
            near = [name for name in self.hook_names if name.split(".")[:2] == block]
            raise unknown(f"hook of {self.name}", hook, near or [n for n in self.hook_names if "resid" in n])

    def check_tokens(self, tokens: Tensor) -> None:
        """Refuse tokens that this model cannot read: other than (batch, positions) ids.

        Raises:
            UserError: not a table of whole numbers, no tokens, more than the context, or ids outside the vocabulary.
        """
        require(
            tokens.ndim == 2 and not tokens.is_floating_point(),
            f"tokens are {tuple(tokens.shape)} of {tokens.dtype}: expected (batch, positions) whole numbers",
        )
        require(tokens.numel() > 0, f"no tokens: expected (batch, positions) token ids, got {tuple(tokens.shape)}")
        require(
            tokens.shape[1] <= self.context,
            f"{tokens.shape[1]} tokens in a row, but {self.name} reads {self.context}: cut them into windows",
        )
        low, high = int(tokens.min()), int(tokens.max())
        require(
            low >= 0 and high < self.vocabulary,
            f"token ids run from {low} to {high}, those of {self.name} from 0 to {self.vocabulary - 1}: "
            "use its own tokenizer",
        )


def load_model(
    model: str = DEFAULT,
    *,
    revision: str = "",
    fold_layer_norm: bool = False,
    centre_writing_weights: bool = False,
    centre_unembed: bool = False,
    fold_value_biases: bool = False,
    device: str = "cpu",
) -> LanguageModel:
    """Boot any model that TransformerBridge boots; by default its weights are left as they are.

    Without processing logits are Hugging Face's. The four options change weights so that log-probabilities stay what
    they were, which is checked.

    Args:
        model: `tiny-gpt2`, which ships; a folder written by save_pretrained, or a checkpoint in one; or a hub name.
        revision: of a folder one of its checkpoints (`step_0`), of a hub name its branch, tag or commit (`step1000`).
        fold_layer_norm: move layer norm's weight and bias into the matrices that read its output.
        centre_writing_weights: take the mean over d from every matrix that writes to the residual stream.
        centre_unembed: take the mean over tokens from the unembedding.
        fold_value_biases: move attention's value biases into its output bias.
        device: cpu, cuda, or auto.

    Raises:
        UserError: no such folder, checkpoint or reachable name; damaged files; processing that the bridge cannot do.
    """
    files = find_model(model, revision)
    device = resolve(device)
    bridge = _boot(files, device)
    wanted = {
        FOLD_LAYER_NORM: fold_layer_norm,
        CENTRE_WRITING: centre_writing_weights,
        CENTRE_UNEMBED: centre_unembed,
        FOLD_VALUE_BIASES: fold_value_biases,
    }
    processing = tuple(name for name, asked in wanted.items() if asked)
    if processing:
        process_weights(model, bridge, processing)
    return LanguageModel(model, bridge, _tokenizer(files, bridge), revision, processing, device)


def load_embedding(model: str = DEFAULT, revision: str = "") -> Embedding:
    """The embedding W_E of a model, and its tokenizer.

    Nothing is looked up on the network for a folder. A hub name is: it is what the user asked for. A training folder
    keeps embeddings of more checkpoints than whole models; all of them are revisions here.

    Raises:
        UserError: no such folder, revision or reachable name, a folder without weights, a damaged file, NaN in the
            rows.
    """
    folder = model_folder(model)
    kept = _kept_embedding(folder, revision) if folder is not None and revision else None
    files = find_model(model, "" if kept is not None else revision)
    bridge = _boot(files, "cpu")
    rows = (bridge.W_E if kept is None else kept).detach().to(torch.float32).cpu().clone()
    bad = (~rows.isfinite()).any(1).nonzero()
    require(
        len(bad) == 0, f"the embedding of {model} holds NaN or infinity, first in row {int(bad[0]) if len(bad) else 0}"
    )
    return Embedding(model, rows, _tokenizer(files, bridge))


def _kept_embedding(folder: Path, revision: str) -> Tensor | None:
    """A checkpoint's embedding from the file of them; None where the checkpoint is a whole model only."""
    from safetensors import safe_open

    if not (folder / EMBEDDINGS).is_file():
        return None
    kept = tensor_names(folder / EMBEDDINGS)
    with safe_open(folder / EMBEDDINGS, framework="pt") as file:
        if revision not in kept:
            whole = [path.name for path in (folder / "checkpoints").glob("*")]
            if revision not in whole:
                raise unknown(f"checkpoint of {folder}", revision, sorted({*kept, *whole}, key=checkpoint_order))
            return None
        rows: Tensor = file.get_tensor(revision)
        return rows


def with_network(model: LanguageModel, network: Any, name: str) -> LanguageModel:
    """Another Hugging Face network of the same class and configuration in the place of a model's own.

    Tokenizer, hooks, device and processing are the model's; the model itself stays as it is. The network is wrapped,
    not copied: where weights are processed they are the network's own.

    Args:
        network: as `type(original)(config)` makes it, in evaluation mode.
        name: what the new model is called.
    """
    from transformer_lens.model_bridge import TransformerBridge

    options = {"tokenizer": model.bridge.tokenizer, "device": model.device}
    bridge = TransformerBridge.boot_transformers(model.bridge.cfg.model_name, hf_model=network, **options)
    if model.processing:
        process_weights(name, bridge, model.processing)
    return LanguageModel(name, bridge, model.tokenizer, processing=model.processing, device=model.device)


@dataclass(frozen=True)
class Network:
    """A whole language model, to be run."""

    network: Any
    """The Hugging Face model behind the bridge, float32: `network(input_ids=...).logits`."""
    tokenizer: Any
    """The model's tokenizer, or None where it has none."""


def load_network(model: str = DEFAULT) -> Network:
    """Boot a model through TransformerBridge and keep the Hugging Face model behind it.

    Raises:
        UserError: as `load_embedding`.
    """
    loaded = load_model(model)
    return Network(loaded.bridge.original_model, loaded.tokenizer)


def _tokenizer(files: ModelFiles, bridge: Any) -> Any:
    return None if files.tokenizer is None else getattr(bridge, "tokenizer", None)


def _boot(files: ModelFiles, device: str) -> Any:
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformer_lens.model_bridge import TransformerBridge
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    options = {"revision": files.revision} if files.revision else {}
    try:
        if files.tokenizer != files.name:
            options["tokenizer"] = _read_tokenizer(files.tokenizer)
        return TransformerBridge.boot_transformers(files.name, device=device, **options)
    except Exception as error:
        if Path(files.name).is_dir():
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"cannot read the model in {files.name}: {first}") from error
        raise not_to_be_had(files.name, error) from error


def _read_tokenizer(folder: str | None) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if folder is None:  # the bridge insists on one; this one knows no token
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()))
    return AutoTokenizer.from_pretrained(folder)
