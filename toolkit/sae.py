"""Sparse autoencoders: fitting, the fitted result and sae-lens's format. The only importer of sae_lens.

```python
from toolkit.sae import SAEConfig, fit_sae
sae = fit_sae(tms_target(toy), SAEConfig(architecture="topk", width=5, k=1))
sae.W_dec                         # (instances, width, d), unit rows
```
"""

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from toolkit.configs import SAEConfig
from toolkit.descent import Checkpoint, Progress, Watch
from toolkit.errors import UserError, require
from toolkit.sae_losses import encode, levels, reconstruct
from toolkit.sae_training import Trainer
from toolkit.targets import Target, rows_target

PROCESSING = {
    "fold_ln": "fold_layer_norm",
    "center_writing_weights": "centre_writing_weights",
    "center_unembed": "centre_unembed",
    "fold_value_biases": "fold_value_biases",
}
"""What TransformerLens calls ways to change a model's weights on loading, and what `load_model` calls them."""
OTHERS = ("transcoder", "temporal")
"""Kinds of sae-lens that do not rebuild each row from itself."""
BY_ROW = ("none", "layer_norm", "constant_norm_rescale")
"""Ways of scaling rows for which nothing has to be known but the row."""
_SCALES = ("ln_mu", "ln_std", "x_norm_coeff")
"""What sae-lens keeps of the rows last encoded."""

__all__ = ["SAE", "LoadedSAE", "SAEConfig", "fit_sae", "load_sae", "push"]


@dataclass(frozen=True)
class SAE:
    """Fitted sparse autoencoders, one an instance, with unit decoder rows: a latent's value is what it writes."""

    config: SAEConfig
    """How they were trained."""
    target: str
    """What they were fitted to."""
    parameters: dict[str, Tensor]
    """W_enc, W_dec (I, width, d), b_enc (I, width), b_dec (I, d); threshold, r_mag, b_mag where there are any."""
    history: Float[Tensor, "steps instances"]
    """Squared error, summed over d, of every training batch."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What sae-lens is to know beside: model_name, hook_name and the like."""

    @property
    def W_dec(self) -> Float[Tensor, "instances width d"]:
        """Decoder rows: the directions the latents write."""
        return self.parameters["W_dec"]

    def encode(self, x: Float[Tensor, "instances rows d"]) -> Float[Tensor, "instances rows width"]:
        """Latents of rows."""
        return encode(self.parameters, x, self.config)

    def decode(self, latents: Float[Tensor, "instances rows width"]) -> Float[Tensor, "instances rows d"]:
        """Rows from latents."""
        return reconstruct(self.parameters, latents)

    def __call__(self, x: Float[Tensor, "instances rows d"]) -> Float[Tensor, "instances rows d"]:
        """The reconstruction of x."""
        return self.decode(self.encode(x))

    def instance(self, i: int) -> "SAE":
        """One of the instances, as an SAE of one."""
        one = {name: value[i : i + 1] for name, value in self.parameters.items()}
        return replace(self, parameters=one, history=self.history[:, i : i + 1])

    def unscaled(self, mean: Float[Tensor, " d"], scale: float) -> "SAE":
        """The SAE for raw rows x of one fitted to (x - mean) * scale: both maps folded into the biases."""
        shifted = ("b_enc", "b_mag", "b_dec", "threshold")
        folded = {name: value / scale if name in shifted else value for name, value in self.parameters.items()}
        folded["b_dec"] = folded["b_dec"] + mean
        return replace(self, parameters=folded)

    def to_sae_lens(self) -> Any:
        """This SAE (of one instance) as a sae-lens training SAE.

        Raises:
            ValueError: there is more than one instance; choose one with `instance`.
        """
        if len(self.W_dec) != 1:
            raise ValueError(f"sae-lens holds one SAE, this has {len(self.W_dec)} instances: take instance(i) first")
        return _training_sae(self)

    def save(self, folder: Path | str) -> None:
        """Write `folder` in sae-lens's format, to be read by `sae_lens.SAE.load_from_disk`."""
        self.to_sae_lens().save_inference_model(folder)


def fit_sae(
    target: Target | Float[Tensor, "rows d"],
    config: SAEConfig = SAEConfig(),
    *,
    seed: int = 0,
    device: str = "cpu",
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    watch: Watch | None = None,
) -> SAE:
    """Train one SAE an instance of the target, all in the same tensors.

    Every instance has its own gradient norm (clipped to 1, as sae-lens does) and its own dead latents, so it ends
    where it would have ended alone.

    Args:
        target: what to fit, or the rows themselves.
        progress: called with the number of steps finished.
        watch: called every 50 steps with squared error, dead latents and learning rate.

    Raises:
        UserError: the rows hold NaN, or batchtopk has nothing to choose from.
        DivergenceError: the loss stopped being finite (the step is named).
    """
    if isinstance(target, Tensor):
        target = rows_target(target, seed=seed)
    trainer = Trainer(target, config, seed, torch.device(device))
    trainer.run(progress, checkpoint, watch)
    return SAE(config, target.name, trainer.fitted(), trainer.history)


def _training_sae(sae: SAE) -> Any:
    """sae-lens's training class for the architecture, holding the parameters of a fitted SAE of one instance."""
    import sae_lens

    config, p = sae.config, {name: value[0].cpu() for name, value in sae.parameters.items()}
    shape = {"d_sae": config.width, "d_in": p["b_dec"].shape[0], "normalize_activations": "none"}
    kinds: dict[str, Callable[[], Any]] = {
        "l1": lambda: sae_lens.StandardTrainingSAE(
            sae_lens.StandardTrainingSAEConfig(**shape, l1_coefficient=config.sparsity)
        ),
        "topk": lambda: sae_lens.TopKTrainingSAE(sae_lens.TopKTrainingSAEConfig(**shape, k=int(config.k))),
        "batchtopk": lambda: sae_lens.BatchTopKTrainingSAE(sae_lens.BatchTopKTrainingSAEConfig(**shape, k=config.k)),
        "matryoshka": lambda: sae_lens.MatryoshkaBatchTopKTrainingSAE(
            sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(**shape, k=config.k, matryoshka_widths=levels(config.width))
        ),
        "jumprelu": lambda: sae_lens.JumpReLUTrainingSAE(
            sae_lens.JumpReLUTrainingSAEConfig(
                **shape, l0_coefficient=config.sparsity, jumprelu_bandwidth=config.bandwidth
            )
        ),
        "gated": lambda: sae_lens.GatedTrainingSAE(
            sae_lens.GatedTrainingSAEConfig(**shape, l1_coefficient=config.sparsity)
        ),
    }
    with torch.random.fork_rng(devices=[]):
        made = kinds[config.architecture]()
    for name, value in {"target": sae.target, **sae.metadata}.items():
        made.cfg.metadata[name] = value
    state = {"W_enc": p["W_enc"].T.contiguous(), "W_dec": p["W_dec"], "b_dec": p["b_dec"]}
    state |= {("b_gate" if config.architecture == "gated" else "b_enc"): p["b_enc"]}
    state |= {name: p[name] for name in ("r_mag", "b_mag") if name in p}
    if config.architecture == "jumprelu":
        state["threshold"] = p["threshold"]
    if config.architecture in ("batchtopk", "matryoshka"):
        state["topk_threshold"] = p["threshold"][0].double()
    made.load_state_dict(state)
    return made


@dataclass(frozen=True)
class LoadedSAE:
    """An SAE that sae-lens has read, to be evaluated; it computes as sae-lens does."""

    source: str
    """The folder, or release:id."""
    lens: Any
    """The `sae_lens.SAE`."""

    @property
    def W_dec(self) -> Float[Tensor, "instances width d"]:
        """Decoder rows, as of an SAE of one instance."""
        return self.lens.W_dec.detach()[None]

    @property
    def architecture(self) -> str:
        """sae-lens's name for its kind."""
        return str(self.lens.cfg.architecture())

    @property
    def metadata(self) -> dict[str, Any]:
        """What it says of itself: model_name, hook_name and the like."""
        return dict(self.lens.cfg.metadata.to_dict())

    @property
    def processing(self) -> dict[str, Any]:
        """What it says was done to the weights of the model it was trained on, as options of `load_model`."""
        asked = self.metadata.get("model_from_pretrained_kwargs") or {}
        return {ours: True for theirs, ours in PROCESSING.items() if asked.get(theirs)}

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "instances rows d"]) -> Float[Tensor, "instances rows width"]:
        """Latents of rows."""
        return self.lens.encode(x)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "instances rows width"]) -> Float[Tensor, "instances rows d"]:
        """Rows from latents; where sae-lens scales each row, in the scale of those last encoded."""
        scale = {name: value for name, value in vars(self.lens).items() if name in _SCALES}
        rows = self.lens.decode(latents)
        vars(self.lens).update(scale)  # sae-lens forgets it once it is used
        return rows

    def __call__(self, x: Float[Tensor, "instances rows d"]) -> Float[Tensor, "instances rows d"]:
        """The reconstruction of x."""
        return self.decode(self.encode(x))


def load_sae(source: str, *, device: str = "cpu") -> LoadedSAE:
    """An SAE from a folder in sae-lens's format, from its public list as release:id, or from the hub as USER/REPO:NAME.

    Raises:
        UserError: no such folder or release, files that are damaged or cannot be had.
    """
    import sae_lens

    # The hub's retries are told to the log as they happen; the one line at the end says it all.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r"\s*This SAE has non-empty model_from_pretrained_kwargs")  # see `processing`
    try:
        if Path(source).is_dir():
            return _loaded(source, sae_lens.SAE.load_from_disk(source, device=device, dtype="float32"))
        release, _, name = source.partition(":")
        require(
            bool(name),
            f"no SAE at {source}: expected a folder written by sae-lens, release:id of its list, or USER/REPO:NAME",
        )
        return _loaded(source, sae_lens.SAE.from_pretrained(release, name, device=device))
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot read the SAE {source}: {reason}") from error


def push(folder: Path | str, repo: str, *, name: str = "sae") -> str:
    """Upload a folder that `SAE.save` wrote to the Hugging Face hub; returns the source by which `load_sae` finds it.

    The account is that of `hf auth login`; a repository that does not exist is made, and is public.

    Args:
        repo: USER/REPO. name: the SAE's in it, a folder there.

    Raises:
        UserError: no SAE in the folder, no such account or right, a hub that cannot be reached.
    """
    import sae_lens

    require(
        repo.count("/") == 1 and all(repo.split("/")) and ":" not in repo + name,
        f"cannot push to {repo!r}: expected USER/REPO of the Hugging Face hub, and a name without a colon",
    )
    require(
        (Path(folder) / "cfg.json").is_file() and (Path(folder) / "sae_weights.safetensors").is_file(),
        f"no SAE in {folder}: expected a folder that sae-lens reads, such as sae/ in a run folder",
    )
    try:
        sae_lens.upload_saes_to_huggingface({name: Path(folder)}, repo, show_progress=False)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"cannot push {folder} to {repo}: {reason}") from error
    return f"{repo}:{name}"


def _loaded(source: str, lens: Any) -> LoadedSAE:
    kind = str(lens.cfg.architecture())
    require(
        not any(other in kind for other in OTHERS),
        f"{source} is of kind {kind}: expected an SAE, which rebuilds each row from that row alone",
    )
    scaling = str(lens.cfg.normalize_activations)
    require(
        scaling in BY_ROW,
        f"{source} reads rows scaled by {scaling}, and the factor is not in it: name it as release:id of sae-lens's "
        "list, or fold the factor in first",
    )
    lens.turn_off_forward_pass_hook_z_reshaping()  # rows come with their heads flattened
    return LoadedSAE(source, lens.eval())
