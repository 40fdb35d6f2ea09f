"""SAEs on a real embedding: our trainer against sae-lens's `SAETrainer` from the same start on the same batches."""

import resource
import time
from itertools import count

import torch

from benchmarks.timing import show
from benchmarks.toy_saes import sae_lens_fit
from toolkit import metrics
from toolkit.configs import ARCHITECTURES, EmbeddingConfig, SAEConfig
from toolkit.fit_embedding import prepare
from toolkit.language import Embedding, load_embedding
from toolkit.sae_training import Trainer, fold_decoder_norm, initial_parameters, rebuild, with_encoder
from toolkit.targets import rows_target

STEPS = 150
SPARSITY = {"l1": 5.0, "gated": 5.0, "jumprelu": 0.5}


def report(model: str | None) -> None:
    """Print FVU and seconds of both, architecture by architecture."""
    embedding = load_embedding(model) if model else Embedding("Gaussian rows", torch.randn(49152, 576), None)
    rows = prepare(embedding, EmbeddingConfig(model=model or "none"), seed=0)
    x = rows.ready(rows.train)
    lines = []
    for architecture in ARCHITECTURES:
        config = SAEConfig(architecture=architecture, steps=STEPS, sparsity=SPARSITY.get(architecture, 1.0))
        lines.append(compare(config, x))
        show("so far", HEAD, lines[-1:])
    show(f"SAEs on {embedding.name}: {len(x):,} x {x.shape[1]}, width 2304, batch 2048, {STEPS} steps", HEAD, lines)
    flops = 2 * 2048 * 576 * 2304
    print(
        f"floor of a topk step: the encoder's product, {flops / 1e9:.1f} Gflop = {1e3 * product_seconds():.0f} ms here"
    )
    print(f"peak memory of this whole benchmark: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


HEAD = ("architecture", "sae-lens ms / step", "ours ms / step", "times faster", "sae-lens FVU", "our FVU", "FVU ratio")


def compare(config: SAEConfig, x: torch.Tensor) -> tuple[str, ...]:
    """Both trained from the same parameters on the same batches; FVU over all training rows."""
    target = rows_target(x, seed=0)
    start = initial_parameters(config, d=x.shape[1], instances=1, seed=0)
    begun = time.perf_counter()
    theirs = sae_lens_fit(config, x.shape[1], (target.batches(s, config.batch)[0] for s in count()), start)
    their_seconds = (time.perf_counter() - begun) / config.steps
    trainer = Trainer(target, config, 0, torch.device("cpu"))
    begun = time.perf_counter()
    trainer.run(None, None)
    our_seconds = (time.perf_counter() - begun) / config.steps
    their_fvu = training_fvu(config, from_sae_lens(theirs, config), x)
    our_fvu = training_fvu(config, with_encoder(trainer.parameters), x)
    return (
        config.architecture,
        f"{1e3 * their_seconds:.0f}",
        f"{1e3 * our_seconds:.0f}",
        f"{their_seconds / our_seconds:.2f}",
        f"{their_fvu:.4f}",
        f"{our_fvu:.4f}",
        f"{our_fvu / their_fvu:.4f}",
    )


def from_sae_lens(theirs, config: SAEConfig) -> dict[str, torch.Tensor]:
    """A sae-lens training SAE's parameters under our names."""
    found = {name: value.detach()[None] for name, value in theirs.named_parameters()}
    if config.architecture == "gated":
        found["b_enc"] = found.pop("b_gate")
    return {**found, "W_enc": found["W_enc"].mT.contiguous()}


def training_fvu(config: SAEConfig, parameters: dict[str, torch.Tensor], x: torch.Tensor) -> float:
    """FVU about the mean, with the budget kept within each chunk so that both sides are measured alike."""
    folded = fold_decoder_norm(parameters)
    chunks = [rebuild(folded, x[start : start + 2048][None], config)[0] for start in range(0, len(x), 2048)]
    return metrics.fvu(x, torch.cat(chunks))


def product_seconds() -> float:
    """Seconds of the one dense product a topk step cannot do without."""
    a, b = torch.randn(2048, 576), torch.randn(576, 2304)
    torch.mm(a, b)
    begun = time.perf_counter()
    for _ in range(10):
        torch.mm(a, b)
    return (time.perf_counter() - begun) / 10
