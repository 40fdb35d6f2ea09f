"""Pretraining of a small GPT-2 (transformers' own GPT2LMHeadModel): the loop, without files."""

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from toolkit.descent import Checkpoint, Progress, Watch
from toolkit.errors import DivergenceError, require
from toolkit.pretrain_config import PretrainConfig, log_grid
from toolkit.pretrain_data import TokenData, batch_at, total_steps, windows
from toolkit.pretrain_optimiser import CLIP, Rows, learning_rate, optimiser_of, row_ids
from toolkit.processes import rank, summed, world
from toolkit.random_rows import frozen_rows, redraw
from toolkit.token_loss import token_loss

_UNCHECKED = 20  # losses that wait on a GPU before they are read: reading one stops the queue
_TOLD = 10  # steps between two losses that are told, at least

Keep = Callable[[int, Any], None]
"""Called with (step, model) at each step of the log grid; the model goes on changing."""


@dataclass(frozen=True)
class Pretrained:
    """A trained model and how it got there."""

    model: Any
    """The GPT2LMHeadModel, on the CPU, in evaluation mode."""
    losses: Float[Tensor, " steps"]
    """Training loss of each step's batch, nats a token."""
    validation: dict[int, float]
    """Step -> validation loss, nats a token, on the log grid of steps from 0 to the last."""
    steps: int
    """Optimiser steps taken."""

    @property
    def final(self) -> float:
        """Validation loss after the last step, nats a token."""
        return self.validation[self.steps]


def initial_model(config: PretrainConfig, *, seed: int, end: int = 0) -> Any:
    """A GPT-2 as transformers initialises it, with tied embedding and no dropout.

    Args:
        end: the id of <|endoftext|>, bos and eos in one.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = GPT2Config(
        vocab_size=config.vocabulary, n_positions=config.context, n_embd=config.width,
        n_layer=config.layers, n_head=config.heads, bos_token_id=end, eos_token_id=end,
        # The function GPT-2 calls gelu_new, in torch's fused form.
        activation_function="gelu_pytorch_tanh",
        # Every token is seen a few times only: there is nothing to regularise.
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(sizes)


def randomise_rows(model: Any, rows: Sequence[int], *, seed: int) -> Any:
    """A copy of a model with the embedding rows of these token ids drawn anew: uniform directions, the same norms.

    Raises:
        UserError: a token id outside the vocabulary, or given twice.
    """
    changed = copy.deepcopy(model)
    table = changed.get_input_embeddings().weight.data
    ids = row_ids(rows, len(table))
    table[ids] = redraw(table[ids], seed=seed)
    return changed


def pretrain(
    data: TokenData,
    config: PretrainConfig,
    *,
    seed: int,
    device: str = "cpu",
    model: Any | None = None,
    only_rows: Sequence[int] | None = None,
    norms: Float[Tensor, " vocabulary"] | None = None,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
    keep: Keep | None = None,
    watch: Watch | None = None,
) -> Pretrained:
    """Train a GPT-2 on `data.train`, and measure it on `data.validation` along a log grid of steps.

    Nothing is printed or written. float32 on the CPU, bfloat16 autocast on CUDA. Under torch.distributed each process
    takes its share of every batch, gradients are averaged, and all end with the same weights.

    Args:
        model: start from a copy of it, not from an initialisation; its sizes must be those of `config`.
        only_rows: token ids of the embedding rows to train; nothing else moves.
        norms: the norms of frozen random rows; by default those of the initial embedding, row by row.
        progress: called with the number of steps just finished (or found finished in the checkpoint).
        checkpoint: where the whole state is kept; a training that finds one goes on to the same numbers.
        watch: called every ten steps with their mean loss, and with each validation loss.

    Raises:
        DivergenceError: a loss stopped being finite.
        UserError: an impossible cosine bound, a model of other sizes, a corpus too small, a batch that the
            processes cannot share.
    """
    start = initial_model(config, seed=seed, end=data.tokenizer.eos_token_id) if model is None else copy.deepcopy(model)
    _check_sizes(start, config)
    _without_dropout(start)
    if config.freeze_embedding == "random":
        table = start.get_input_embeddings().weight
        table.data = frozen_rows(table.data if norms is None else norms, config, seed=seed)
        table.requires_grad_(False)
    training = _Training(start, data, config, seed, device, only_rows)
    saved = checkpoint.load() if checkpoint else None
    if saved:
        training.restore(saved)
        if progress:
            progress(training.done)
    _check_shared(training.done, device)
    told = training.done
    while training.measure(keep, watch) and training.done < training.steps:
        training.step()
        if progress:
            progress(1)
        if watch and not training.unread and training.done >= told + _TOLD:
            watch(training.done, {"loss": fmean(training.losses[told:])})
            told = training.done
        if checkpoint and rank() == 0 and not training.unread:
            checkpoint.save(training.state)
    return training.result()


def validation_loss(
    model: Any, tokens: Int[Tensor, " tokens"], *, context: int, batch: int = 16, device: str = "cpu"
) -> float:
    """Mean loss over a stream, nats a token, in windows of `context`: every token but the first is predicted once.

    Under torch.distributed each process takes its share of the windows, and all get the mean.
    """
    loss = _Loss(model)
    sums = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad(), _precision(device):
        for number, window in enumerate(windows(tokens, context, batch)):
            if number % world() == rank():
                predicted = window.shape[0] * (window.shape[1] - 1)
                sums += torch.tensor([loss(window.to(device)).item() * predicted, predicted], dtype=torch.float64)
    sums = summed(sums, device)
    return (sums[0] / sums[1]).item()


class _Loss(nn.Module):
    """The model with its loss as output, so that DistributedDataParallel can wrap both."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        """Mean loss of sequences (batch, t + 1) whose last token is a target only."""
        hidden = self.model.transformer(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
        # (batch, t, d) -> (batch * t, d)
        return token_loss(hidden.flatten(0, 1), self.model.lm_head.weight, tokens[:, 1:].flatten())


def _check_shared(done: int, device: str) -> None:
    """Every process must have taken up the same checkpoint."""
    reached = summed(torch.tensor([float(done)]), device)
    require(
        float(reached) == world() * done,
        "the processes found different checkpoints: --out must be a folder that all of them share",
    )


class _Training:
    """The state of one training and its step."""

    def __init__(
        self, model: Any, data: TokenData, config: PretrainConfig, seed: int, device: str, rows: Sequence[int] | None
    ) -> None:
        self.model = model.to(device).train()
        self.data, self.config, self.seed, self.device = data, config, seed, device
        self.steps = total_steps(data.train, config)
        self.grid = log_grid(self.steps, config.checkpoints)
        self.losses: list[float] = []
        self.unread: list[Tensor] = []
        self.validation: dict[int, float] = {}
        self.rows = None if rows is None else Rows(model, rows)
        self.named = dict(self.rows.named if self.rows else _trainable(model))
        self.optimiser = optimiser_of(self.named, config)
        require(config.batch % world() == 0, f"{world()} processes cannot share batch={config.batch} evenly")
        self.loss: nn.Module = _Loss(model)
        if world() > 1:
            self.loss = nn.parallel.DistributedDataParallel(self.loss)

    @property
    def done(self) -> int:
        return len(self.losses) + len(self.unread)

    def measure(self, keep: Keep | None, watch: Watch | None) -> bool:
        """Validation and `keep` where the grid has a step; always true, for the loop's condition."""
        if self.done in self.grid and self.done not in self.validation:
            self.read()
            tokens, size = self.data.validation, self.config
            self.model.eval()
            self.validation[self.done] = validation_loss(
                self.model, tokens, context=size.context, batch=size.batch, device=self.device
            )
            self.model.train()
            if watch:
                watch(self.done, {"validation_loss": self.validation[self.done]})
            if keep:
                keep(self.done, self.model)
        return True

    def step(self) -> None:
        batch = batch_at(self.data.train, self.config, seed=self.seed, step=self.done)
        batch = batch[rank() :: world()].to(self.device)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.done, self.steps, self.config)
        with _precision(self.device):
            loss = self.loss(batch)
        loss.backward()
        if self.rows:
            self.rows.take_gradient()
        torch.nn.utils.clip_grad_norm_(list(self.named.values()), CLIP)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        if self.rows:
            self.rows.put_back()
        self.unread.append(loss.detach())
        if len(self.unread) >= _patience(self.device):
            self.read()

    def read(self) -> None:
        """Move losses to the host, averaged over processes, and stop at one that is not finite."""
        if not self.unread:
            return
        waiting = summed(torch.stack(self.unread).float(), self.device) / world()
        bad = (~waiting.isfinite()).nonzero()
        if len(bad):
            raise DivergenceError("the language model", len(self.losses) + int(bad[0]))
        self.losses += waiting.tolist()
        self.unread = []

    def state(self) -> dict[str, Tensor]:
        """Everything that decides the steps to come. One process asks for it, so nothing here waits for the others."""
        kept = {"history": torch.tensor(self.losses, dtype=torch.float32)}
        kept["validation"] = torch.tensor(list(self.validation.items()), dtype=torch.float64)
        for name, parameter in self.named.items():
            moments = self.optimiser.state[parameter]
            kept |= {f"weights.{name}": parameter.detach(), f"mean.{name}": moments["exp_avg"]}
            kept[f"square.{name}"] = moments["exp_avg_sq"]
        return kept

    def restore(self, saved: dict[str, Tensor]) -> None:
        self.losses = saved["history"].tolist()
        self.validation = {int(step): loss for step, loss in saved["validation"].tolist()}
        for name, parameter in self.named.items():
            parameter.data.copy_(saved[f"weights.{name}"])
            self.optimiser.state[parameter] = {
                "step": torch.tensor(float(len(self.losses)), device=self.device),
                "exp_avg": saved[f"mean.{name}"].to(self.device),
                "exp_avg_sq": saved[f"square.{name}"].to(self.device),
            }
        if self.rows:
            self.rows.put_back()

    def result(self) -> Pretrained:
        self.read()
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        model = self.model.cpu().eval()
        return Pretrained(model, torch.tensor(self.losses), dict(self.validation), self.steps)


def _trainable(model: Any) -> Iterable[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _without_dropout(model: Any) -> None:
    """GPT-2's own checkpoints ask for dropout, which would draw from torch's global generator."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def _patience(device: str) -> int:
    """Losses that may wait to be read."""
    return 1 if device == "cpu" else _UNCHECKED


def _precision(device: str) -> AbstractContextManager[Any]:
    return torch.autocast("cuda", torch.bfloat16) if device == "cuda" else nullcontext()


def _check_sizes(model: Any, config: PretrainConfig) -> None:
    sizes = model.config
    found = {
        "layers": sizes.n_layer, "width": sizes.n_embd, "heads": sizes.n_head,
        "context": sizes.n_positions, "vocabulary": sizes.vocab_size,
    }  # fmt: skip
    other = [
        f"{name}: {value} -> {getattr(config, name)}" for name, value in found.items() if value != getattr(config, name)
    ]
    require(not other, f"the model to start from has other sizes than the settings ask for: {'; '.join(other)}")
