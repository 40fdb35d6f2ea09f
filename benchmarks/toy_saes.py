"""SAEs on toy models: all instances in one program against one sae-lens `SAETrainer` each."""

import contextlib
import io
from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor

from benchmarks.timing import best_of, show
from toolkit.configs import ARCHITECTURES, PRESETS, SAEConfig, ToyModel, ToyTraining
from toolkit.sae import SAE
from toolkit.sae_training import Trainer, initial_parameters, with_encoder
from toolkit.targets import Target, tms_target
from toolkit.toy import train

STEPS = 150
TRAINERS = 3
"""SAETrainers that are timed; each instance needs one, so their mean is multiplied by the instances."""


def report() -> None:
    """Print the table, at one and two threads for sae-lens since fewer can be faster at this size."""
    toy = train(ToyModel(), ToyTraining(toy_steps=1500))
    target = tms_target(toy, seed=1)
    rows = []
    base = PRESETS["pentagon"].sae
    for architecture in ARCHITECTURES:
        config = SAEConfig(architecture=architecture, width=base.width, k=1, steps=STEPS, batch=1024, lr=base.lr)
        threads = torch.get_num_threads()
        peers = {}
        for used in (1, threads):
            torch.set_num_threads(used)
            peers[used] = sae_lens_seconds(target, config) * target.instances
        torch.set_num_threads(threads)
        mine = ours_seconds(target, config)
        best = min(peers.values())
        cells = [f"{seconds * 1e3:.2f}" for seconds in (*peers.values(), mine)]
        rows.append((architecture, *cells, f"{best / mine:.1f}"))
    head = ("architecture", "SAETrainers, 1 thread", "SAETrainers, all threads", "ours", "times faster")
    show(f"SAEs on {target.instances} toy models (d=2, width {base.width}, batch 1024): ms a step of all", head, rows)


def ours_seconds(target: Target, config: SAEConfig) -> float:
    """Seconds a step of all instances."""

    def run() -> None:
        Trainer(target, config, 0, torch.device("cpu")).run(None, None)

    return best_of(run) / config.steps


def sae_lens_seconds(target: Target, config: SAEConfig) -> float:
    """Seconds a step of one `SAETrainer` on one instance's rows, its batches made beforehand."""
    batches = [target.batches(step, config.batch) for step in range(8)]

    def provider(instance: int) -> Iterator[Tensor]:
        return (batches[step % len(batches)][instance] for step in count())

    def run() -> None:
        for instance in range(TRAINERS):
            sae_lens_fit(config, target.d, provider(instance))

    return best_of(run, repeats=2) / config.steps / TRAINERS


def sae_lens_fit(config: SAEConfig, d: int, provider: Iterator[Tensor], start: dict[str, Tensor] | None = None):
    """Train sae-lens's own class with its own trainer; from `start` where given."""
    from sae_lens import SAETrainer
    from sae_lens.config import SAETrainerConfig

    own = start or initial_parameters(config, d=d, instances=1, seed=0)
    thresholds = {"threshold": torch.zeros(1, config.width)} | with_encoder(own)
    theirs = SAE(config, "benchmark", thresholds, torch.empty(0, 1)).to_sae_lens()
    total = config.steps * config.batch
    trainer_config = SAETrainerConfig(
        total_training_samples=total,
        train_batch_size_samples=config.batch,
        lr=config.lr,
        lr_end=config.lr,
        lr_decay_steps=config.steps // 5,
        dead_feature_window=config.dead_after,
    )
    with contextlib.redirect_stderr(io.StringIO()):
        return SAETrainer(trainer_config, theirs, provider).fit()
