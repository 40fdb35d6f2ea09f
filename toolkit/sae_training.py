"""Training of many SAEs in the same tensors: the loop, its state, initialisation, resampling, calibration.

Under torchrun each process takes its share of every batch; gradients are averaged before they are clipped, so that all
take the step that one process would take with the whole batch.
"""

import numpy as np
import torch
from torch import Tensor

from toolkit.configs import WITH_K, SAEConfig
from toolkit.descent import EVALUATION, Checkpoint, Progress, Watch
from toolkit.errors import DivergenceError, require
from toolkit.processes import anywhere, as_first, average, rank, world
from toolkit.sae_losses import Parameters, batch_topk, encode, pre_activations, reconstruct, row_topk
from toolkit.sae_steps import Buffers, Step, step_function
from toolkit.targets import Target

DECODER_NORM = 0.1
"""Norm of the decoder's rows at the start, as in sae-lens ("heuristic" initialisation, Conerly et al. 2024)."""
CHUNK = 50
"""Steps between two looks at the progress bar and the clock."""


class Trainer:
    """The mutable state of a fit and its loop."""

    def __init__(self, target: Target, config: SAEConfig, seed: int, device: torch.device) -> None:
        self.target, self.config, self.seed, self.device = target, config, seed, device
        check_shares(config, instances=target.instances)
        start = initial_parameters(config, d=target.d, instances=target.instances, seed=seed)
        self.parameters = {name: value.to(device) for name, value in start.items()}
        self.grads = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        self.silent = torch.zeros(target.instances, config.width, dtype=torch.int64, device=device)
        self.history = torch.zeros(0, target.instances)
        self.step_of, self.buffers = step_function(config, device), Buffers()
        leaves = [torch.nn.Parameter(value) for value in self.parameters.values()]
        for leaf, gradient in zip(leaves, self.grads.values(), strict=True):
            leaf.grad = gradient
        self.optimizer = torch.optim.Adam(leaves, lr=config.lr, fused=True)
        self.moments = {name: torch.zeros(2, *value.shape, device=device) for name, value in self.parameters.items()}

    def run(self, progress: Progress | None, checkpoint: Checkpoint | None, watch: Watch | None = None) -> None:
        """Train to the last step, in chunks between which the state may be kept."""
        self._start(checkpoint.load() if checkpoint and rank() == 0 else None)
        while len(self.history) < self.config.steps:
            todo = min(CHUNK, self.config.steps - len(self.history))
            first = len(self.history)
            errors = torch.stack([self._step(step) for step in range(first, first + todo)]).cpu()
            self.history = torch.cat([self.history, errors])
            if not all(bool(value.isfinite().all()) for value in self.parameters.values()):
                raise DivergenceError(f"the SAE on {self.target.name}", len(self.history) - 1)
            if progress:
                progress(todo)
            if watch:
                watch(len(self.history), self._measured(errors))
            if checkpoint and rank() == 0:
                checkpoint.save(self._state)

    def _measured(self, errors: Tensor) -> dict[str, float]:
        dead = (self.silent > self.config.dead_after).float().mean().item()
        rate = float(self.optimizer.param_groups[0]["lr"])
        return {"squared_error": errors.mean().item(), "share_dead": dead, "learning_rate": rate}

    def _step(self, step: int) -> Tensor:
        """One optimiser step; returns the squared error of each instance."""
        x = self.target.batches(step, self.config.batch).to(self.device)
        # Resampling takes the place of the auxiliary loss: both at once would fight over the same latents.
        dead = (self.silent > self.config.dead_after) & (not self.config.resample)
        mine = x[:, rank() :: world()].contiguous()
        done = self.step_of(with_encoder(self.parameters), self.grads, mine, self.config, dead, self.buffers)
        done = self._averaged(done)
        if not bool(done.loss.isfinite().all()):
            raise DivergenceError(f"the SAE on {self.target.name}", step)
        clip_by_instance(self.grads)
        self.optimizer.param_groups[0]["lr"] = learning_rate(self.config, step)
        self.optimizer.step()
        if "threshold" in self.parameters:
            self.parameters["threshold"].clamp_(min=0)
        self.silent = (self.silent + 1).masked_fill_(done.fired, 0)
        if self.config.resample and self._is_resampling(step):
            self._resample(x, step)
        return done.error

    def _averaged(self, done: Step) -> Step:
        """Gradients, written in place, and losses as one process would have them that saw the whole batch."""
        if world() == 1:
            return done
        error, loss = done.error.clone(), done.loss.clone()  # views of a table otherwise
        average([*self.grads.values(), error, loss])
        return Step(error, loss, anywhere(done.fired))

    def _is_resampling(self, step: int) -> bool:
        """Every `dead_after` steps, but not in the last fifth: a new latent needs time to settle."""
        return (step + 1) % self.config.dead_after == 0 and step < 0.8 * self.config.steps

    def _resample(self, x: Tensor, step: int) -> None:
        """Point silent latents at what badly rebuilt rows lack; Bricken et al. (2023, appendix) take the rows.

        Rows are drawn in proportion to squared loss; the encoder starts at `resample_encoder` times the live latents'
        norm, the decoder at their mean norm, and Adam forgets what it knew of them.
        """
        silent = self.silent >= max(self.config.dead_after - 1, 1)
        for i in silent.any(1).nonzero().flatten().tolist():
            latents = silent[i].nonzero().flatten()
            p = {name: value[i : i + 1] for name, value in with_encoder(self.parameters).items()}
            residual = (x[i] - rebuild(p, x[i : i + 1], self.config)[0]).cpu()
            chances = residual.square().sum(1).double().square().numpy() + 1e-30
            draw = np.random.default_rng([self.seed, 2, step, i])
            rows = draw.choice(len(residual), len(latents), p=chances / chances.sum())
            direction = torch.nn.functional.normalize(residual[rows], dim=1).to(self.device)
            alive = ~silent[i]
            norm = {name: p[name][0, alive].norm(dim=1).mean() if alive.any() else 1.0 for name in ("W_enc", "W_dec")}
            self.parameters["W_dec"][i, latents] = direction * norm["W_dec"]
            if "W_enc" in self.parameters:
                self.parameters["W_enc"][i, latents] = self.config.resample_encoder * direction * norm["W_enc"]
            self._forget(i, latents)
        # Every process has drawn from the whole batch, but a rounding could have tipped a draw.
        as_first([*self.parameters.values(), *self.moments.values(), self.silent])

    def _forget(self, i: int, latents: Tensor) -> None:
        for name, moments in self.moments.items():
            if name != "b_dec":
                moments[:, i, latents] = 0
        self.parameters["b_enc"][i, latents] = 0
        self.silent[i, latents] = 0

    def _start(self, saved: dict[str, Tensor] | None) -> None:
        """Take up a saved state, and hand Adam its moments so that they can be saved."""
        if saved is not None:
            self.history, self.silent = saved["history"], saved["silent"].to(self.device)
            for name, value in self.parameters.items():
                value.copy_(saved[f"parameters.{name}"])
                self.moments[name].copy_(saved[f"moments.{name}"])
        self._as_first()
        for leaf, moments in zip(self.optimizer.param_groups[0]["params"], self.moments.values(), strict=True):
            step = torch.tensor(float(len(self.history)), device=self.device)
            self.optimizer.state[leaf] = {"step": step, "exp_avg": moments[0], "exp_avg_sq": moments[1]}

    def _as_first(self) -> None:
        """Go on from where the first process stands: it alone reads the checkpoint."""
        if world() > 1:
            steps = torch.tensor([len(self.history)], device=self.device)
            as_first([steps, *self.parameters.values(), *self.moments.values(), self.silent])
            if rank() > 0:
                self.history = torch.zeros(int(steps), self.target.instances)

    def _state(self) -> dict[str, Tensor]:
        kept = {f"parameters.{name}": value for name, value in self.parameters.items()}
        kept |= {f"moments.{name}": value for name, value in self.moments.items()}
        return {**kept, "silent": self.silent, "history": self.history}

    def fitted(self) -> Parameters:
        """The parameters of the finished SAEs: unit decoder rows, batch-wise choices turned into a threshold."""
        folded = fold_decoder_norm(with_encoder(self.parameters))
        if self.config.architecture in ("batchtopk", "matryoshka"):
            x = self.target.batches(EVALUATION, 4 * self.config.batch).to(self.device)
            folded["threshold"] = calibrated_threshold(folded, x, self.config.k)
        return folded


def check_shares(config: SAEConfig, *, instances: int = 1) -> None:
    """Refuse what several processes cannot do as one would.

    Raises:
        UserError: choices over the batches of several SAEs at once, or a batch that does not divide.
    """
    require(
        world() == 1 or instances == 1 or config.architecture not in ("batchtopk", "matryoshka"),
        f"{world()} processes train one {config.architecture} SAE at a time, not {instances}: start them without "
        "torchrun, or take l1, topk, jumprelu or gated",
    )
    require(config.batch % world() == 0, f"{world()} processes cannot share batch={config.batch} evenly")


def initial_parameters(config: SAEConfig, *, d: int, instances: int, seed: int) -> Parameters:
    """Decoder rows of norm 0.1 in random directions, encoder = decoder, biases 0 (as sae-lens starts).

    Each instance draws from its own generator. A tied SAE has no W_enc of its own.
    """
    shape = (config.width, d)
    draws = np.stack([np.random.default_rng([seed, 3, i]).standard_normal(shape) for i in range(instances)])
    decoder = torch.nn.functional.normalize(torch.from_numpy(draws).float(), dim=-1) * DECODER_NORM
    start = {"W_dec": decoder, "b_enc": torch.zeros(instances, config.width), "b_dec": torch.zeros(instances, d)}
    if not config.tied:
        start["W_enc"] = decoder.clone()
    if config.architecture == "jumprelu":
        start["threshold"] = torch.full((instances, config.width), 0.01)
    if config.architecture == "gated":
        start |= {name: torch.zeros(instances, config.width) for name in ("r_mag", "b_mag")}
    return start


def with_encoder(parameters: Parameters) -> Parameters:
    """The parameters with W_enc, which is W_dec where the two are tied."""
    return {"W_enc": parameters["W_dec"], **parameters}


def learning_rate(config: SAEConfig, step: int) -> float:
    """Constant, then linear to zero over the last fifth."""
    return config.lr * min(1.0, (config.steps - step) / (0.2 * config.steps))


def clip_by_instance(grads: Parameters, limit: float = 1.0) -> None:
    """Scale each instance's gradients, in place, to a joint norm of at most `limit`."""
    squares = [torch.linalg.vector_norm(g.flatten(1), dim=1).square() for g in grads.values()]
    factor = (limit / (torch.stack(squares).sum(0).sqrt() + 1e-6)).clamp(max=1.0)
    for g in grads.values():
        g.mul_(factor.view(-1, *[1] * (g.ndim - 1)))


def fold_decoder_norm(p: Parameters) -> Parameters:
    """Unit decoder rows, their norms moved into the encoder: the same function, comparable latents."""
    norms = p["W_dec"].norm(dim=-1).clamp(min=1e-12)
    folded = {name: value * norms for name, value in p.items() if name in ("b_enc", "b_mag", "threshold")}
    folded |= {"W_enc": p["W_enc"] * norms[..., None], "W_dec": p["W_dec"] / norms[..., None]}
    return {**{name: value.clone() for name, value in p.items()}, **folded}


def rebuild(p: Parameters, x: Tensor, config: SAEConfig) -> Tensor:
    """The reconstruction while training, where batch-wise architectures choose within the batch."""
    if config.architecture not in WITH_K:
        return reconstruct(p, encode(p, x, config))
    latents = pre_activations(p, x).relu()
    scores = latents * p["W_dec"].norm(dim=-1)[:, None]
    topk, keep = config.architecture == "topk", int(config.k * x.shape[1])
    chosen = row_topk(scores, int(config.k)) if topk else batch_topk(scores, keep)
    return reconstruct(p, latents * chosen)


def calibrated_threshold(p: Parameters, x: Tensor, k: float) -> Tensor:
    """The threshold, (I, w), at which rows have k active latents on average (unit decoder rows).

    sae-lens tracks it while training in an average that starts at zero, which a short run never warms up;
    here it is read off the finished SAE.
    """
    keep = int(k * x.shape[1])
    cuts = []
    for scores in pre_activations(p, x).relu():
        values = scores.flatten().cpu().numpy()
        # The largest score left out; 0 where all may stay.
        cuts.append(float(np.partition(values, -keep - 1)[-keep - 1]) if keep < len(values) else 0.0)
    return torch.tensor(cuts, device=x.device)[:, None].expand_as(p["b_enc"]).contiguous()
