"""Every setting of the toolkit's fits, as frozen dataclasses. Light to import: the command's --help reads only this."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from toolkit.errors import check_types, require, unknown
from toolkit.logbook import check_log

ARCHITECTURES = ("l1", "topk", "batchtopk", "jumprelu", "gated", "matryoshka")
WITH_K = ("topk", "batchtopk", "matryoshka")
TARGETS = ("tms", "embedding", "gpt2-embedding", "activations")


# Numbers are float32 in the end, and sizes index arrays.
_LARGEST = 1e38
_LARGEST_SIZE = 2**31 - 1


def _as_tuple(value: float | tuple[float, ...] | list[float]) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _as_densities(values: tuple[float, ...]) -> tuple[float, ...]:
    require(len(values) > 0, "density must hold at least one value, got none")
    for v in values:
        require(0 < v <= 1, f"density must lie in (0, 1], got {v}: it is the share of samples with the feature on")
    return tuple(float(v) for v in values)


def _positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(0 < value <= _LARGEST, f"{name} must be positive and at most {_LARGEST:g}, got {value}")


def _whole(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(0 < value <= _LARGEST_SIZE, f"{name} must be a positive whole number, got {value}")


@dataclass(frozen=True)
class ToyModel:
    """Toy models of superposition, many instances at once: x' = ReLU(W^T W x + b), W is hidden x features."""

    features: int = 5
    """Number of features n."""
    hidden: int = 2
    """Number of hidden dimensions m; superposition needs m < n."""
    instances: int = 16
    """Models trained side by side, each with its own seed; single seeds get stuck in local minima."""
    density: tuple[float, ...] = (0.05,)
    """Probability that a feature is on, in (0, 1]; several values are dealt out to the instances in turn."""
    importance: float = 1.0
    """Feature i weighs importance**i in the loss; 1 makes all alike."""
    output: Literal["relu", "linear"] = "relu"
    """Activation at the output; linear gives principal components, never superposition."""
    hidden_activation: Literal["linear", "relu"] = "linear"
    """Activation at the hidden layer; relu gives it a privileged basis."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "density", _as_tuple(self.density))
        check_types(self)
        _whole(self, "features", "hidden", "instances")
        object.__setattr__(self, "density", _as_densities(self.density))
        _positive(self, "importance")
        require(
            (self.features - 1) * math.log(self.importance) <= math.log(_LARGEST),
            f"importance={self.importance:g} to the power {self.features - 1} is more than {_LARGEST:g}: "
            "bring it nearer to 1",
        )
        require(
            len(self.density) <= self.instances,
            f"{len(self.density)} densities need at least as many instances, got instances={self.instances}",
        )


@dataclass(frozen=True)
class ToyTraining:
    """How the toy models are trained."""

    toy_steps: int = 5000
    """Optimiser steps of the toy models; the pentagon's loss is flat from about 3,000 on."""
    toy_batch: int = 1024
    """Samples an instance sees in each step."""
    toy_lr: float = 3e-3
    """Adam's learning rate, kept for the first half, then brought to zero along a cosine."""

    def __post_init__(self) -> None:
        check_types(self)
        _whole(self, "toy_steps", "toy_batch")
        _positive(self, "toy_lr")


@dataclass(frozen=True)
class SAEConfig:
    """A sparse autoencoder and its training."""

    architecture: Literal["l1", "topk", "batchtopk", "jumprelu", "gated", "matryoshka"] = "topk"
    """Activation and sparsity rule."""
    width: int = 2304
    """Number of latents."""
    k: float = 32
    """Active latents a row (topk) or on average over the batch (batchtopk, matryoshka: may be a fraction)."""
    sparsity: float = 1.0
    """Weight of the penalty: L1 (l1, gated) or L0 (jumprelu), as sae-lens scales it; others ignore it."""
    tied: bool = False
    """Encoder = decoder transposed, one matrix: a latent cannot read one direction and write another."""
    resample: bool = False
    """Re-draw latents silent for `dead_after` steps at badly rebuilt inputs, in place of the auxiliary loss."""
    resample_encoder: float = 0.2
    """Norm of a re-drawn latent's encoder over the live ones' (Bricken et al. 2023: a fifth); tied ignores it."""
    steps: int = 2000
    """Optimiser steps."""
    batch: int = 2048
    """Rows in each step (each instance has its own)."""
    lr: float = 1e-3
    """Adam's learning rate; constant, then linear to zero over the last fifth of the steps."""
    dead_after: int = 1000
    """Steps without firing after which a latent counts as dead while training (auxiliary loss, resampling)."""
    bandwidth: float = 0.05
    """Width of the straight-through window round the jumprelu threshold, in units of the (scaled) input."""

    def __post_init__(self) -> None:
        check_types(self)
        _whole(self, "width", "steps", "batch", "dead_after")
        _positive(self, "k", "lr", "bandwidth", "resample_encoder")
        require(
            0 <= self.sparsity < math.inf,
            f"sparsity must be zero or a positive number, got {self.sparsity}: its weight",
        )
        if self.architecture in WITH_K:
            require(
                self.k <= self.width,
                f"k={self.k:g} is more than width={self.width}: choose k <= width, the number of latents there are",
            )
            require(self.k * self.batch >= 1, f"k={self.k:g} leaves no latent in a batch of {self.batch}: raise either")
        if self.architecture == "topk":
            require(self.k == int(self.k), f"topk keeps a whole number of latents a row, got k={self.k:g}")
        if self.architecture == "matryoshka":
            require(self.width >= 2, f"matryoshka nests at least two levels: width must be >= 2, got {self.width}")


@dataclass(frozen=True)
class EmbeddingConfig:
    """The rows of a language model's token embedding, as data for an SAE."""

    model: str = "tiny-gpt2"
    """tiny-gpt2 (ships), a hub name or a folder (any that transformer_lens.TransformerBridge boots)."""
    revision: str = ""
    """A checkpoint of the model: of tiny-gpt2 or a training folder one such as step_0, of a hub name its revision."""
    centre: bool = True
    """Subtract the mean row before fitting; folded into the saved SAE, which takes raw rows."""
    unit_norm: bool = False
    """Scale each row to norm 1 first; a row's own norm cannot be folded, so the saved SAE takes unit rows."""
    frequencies: str = ""
    """A .txt or .txt.gz file: tokens are drawn, errors weighted, by their counts in it; empty: all alike."""
    held_out: float = 0.2
    """Share of tokens kept out of training, in [0, 1)."""

    def __post_init__(self) -> None:
        check_types(self)
        require(0 <= self.held_out < 1, f"held_out must lie in [0, 1), got {self.held_out}: a share of the tokens")
        require(bool(self.model), "model must be a hub name or a folder, got an empty string")


@dataclass(frozen=True)
class ActivationsConfig:
    """A language model's activations over a corpus, as data for an SAE."""

    model: str = "tiny-gpt2"
    """tiny-gpt2 (ships), a hub name or a folder (any that transformer_lens.TransformerBridge boots)."""
    revision: str = ""
    """A checkpoint of the model: of tiny-gpt2 or a training folder one such as step_0, of a hub name its revision."""
    hook: str = ""
    """Where they are read, by TransformerLens's names: blocks.3.hook_resid_post is the stream after block 3."""
    corpus: str = ""
    """A text or CoNLL-U file, a folder of them, nltk:NAME (a corpus NLTK finds) or hf:NAME[:CONFIG][:SPLIT]."""
    context: int = 256
    """Tokens in a window, its beginning token included; no more than the model reads."""
    forward_batch: int = 4096
    """Tokens in a forward pass, padding included; two cores gain nothing beyond, a GPU wants more."""
    rows: int = 0
    """Stop harvesting after the document in which this many rows are reached; 0 takes the whole corpus."""
    held_out: float = 0.1
    """Share of documents kept out of training, in [0, 1); cross-entropy is measured on them."""
    cache: str = ""
    """Folder that keeps activations for later runs, float16; empty: activations/ in --out. Any part may be deleted."""
    sae: str = ""
    """Evaluate this SAE instead of training one: a folder in sae-lens's format, or release:id of its public list."""

    def __post_init__(self) -> None:
        check_types(self)
        require(0 <= self.held_out < 1, f"held_out must lie in [0, 1), got {self.held_out}: a share of the documents")
        require(bool(self.model), "model must be a hub name or a folder, got an empty string")
        _whole(self, "context", "forward_batch")
        require(
            0 <= self.rows <= _LARGEST_SIZE,
            f"rows must be a whole number, got {self.rows}: how many to harvest, 0 for all",
        )


@dataclass(frozen=True)
class RunConfig:
    """Where and how a run happens. Nothing here but the seed and device changes its numbers."""

    seed: int = 0
    """Every draw follows from it: the same seed gives the same numbers on the same machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes cuda where there is one."""
    out: str = "runs"
    """Folder that receives `<name>/<number>/` with the result, tensors, the SAE and figures."""
    resume: bool = False
    """Go on with the newest unfinished run of this name; start one where there is none."""
    quiet: bool = False
    """No progress bars; the table is still printed."""
    log: Literal["none", "tensorboard", "wandb"] = "none"
    """Where the SAE's loss also goes: TensorBoard's files in the run folder, or Weights & Biases; extra `logging`."""

    def __post_init__(self) -> None:
        check_types(self)
        check_log(self.log)
        require(0 <= self.seed < 2**31, f"seed must be a whole number in [0, 2**31), got {self.seed}")


@dataclass(frozen=True)
class Preset:
    """Settings that belong together."""

    toy: ToyModel
    """The toy models."""
    training: ToyTraining
    """How they are trained."""
    sae: SAEConfig
    """The SAEs on them."""


_TOY_SAE = SAEConfig(
    architecture="topk", width=10, k=1, tied=True, resample=True, steps=3000, batch=1024, lr=3e-3, dead_after=100
)
PRESETS: dict[str, Preset] = {
    "pentagon": Preset(ToyModel(), ToyTraining(), _TOY_SAE),
    "geometry": Preset(
        ToyModel(features=400, hidden=30, instances=4, density=(0.1, 0.03, 0.01, 0.003)),
        ToyTraining(),
        replace(_TOY_SAE, width=800, k=2, steps=2000, dead_after=200),
    ),
}


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON values (tuples become lists)."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}


def from_dict(cls: type, values: Mapping[str, Any]) -> Any:
    """Build a configuration from what `to_dict` gives (lists become tuples again), refusing unknown keys.

    Raises:
        UserError: a key is no field of `cls`, or the values contradict each other.
    """
    names = [field.name for field in fields(cls)]
    for key in values:
        if key not in names:
            raise unknown(f"setting of {cls.__name__}", key, names)
    return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


def differing(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The settings in which two nested configurations differ, each as 'name: old -> new'."""
    rows = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            rows += differing(before, after, f"{prefix}{key}.")
        elif before != after:
            rows.append(f"{prefix}{key}: {before!r} -> {after!r}")
    return rows
