"""Several processes at one training, under torchrun: which one this is, how many there are, sums over all."""

import importlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from toolkit.errors import require

PATIENCE = timedelta(days=2)
"""How long a process waits for the others: as long as the first may take to harvest. torchrun ends them if it dies."""


@contextmanager
def joined_processes(device: str) -> Iterator[None]:
    """Join torchrun's other processes, if there are any: over gloo on CPUs, over NCCL with a GPU each.

    Raises:
        UserError: more processes than GPUs.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    # Its functions' defaults keep the group of the moment it is first imported, which any optimizer does: imported
    # while there is a group, that group's threads outlive it and may abort the process as it ends.
    importlib.import_module("torch.distributed.nn")
    if device == "cuda":
        wanted, there = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
        few = f"{wanted} processes here and a GPU each, but torch sees {there}"
        require(wanted <= there, f"{few}: give torchrun --nproc-per-node {there}, or --device cpu")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    yield
    dist.destroy_process_group()  # not after a failure: it may wait for processes that wait for this one


def rank() -> int:
    """This process's number; 0 where it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def summed(values: Tensor, device: str) -> Tensor:
    """Values added up over all processes; themselves where there is one."""
    if world() == 1:
        return values
    there = values.to(device)
    dist.all_reduce(there)
    return there.to(values.device)


def average(values: Iterable[Tensor]) -> None:
    """Replace values, in place, by their mean over all processes."""
    for value in values:
        dist.all_reduce(value)
        value.div_(world())


def anywhere(flags: Tensor) -> Tensor:
    """Flags that are set in any process."""
    counts = flags.int()
    dist.all_reduce(counts)
    return counts > 0


def kept_here(scores: Tensor, keep: int) -> int:
    """How many of the `keep` largest scores of all processes together are this one's.

    Args:
        scores: (n,), as many in every process. Ties at the cut go to the first processes, as if theirs came first.
        keep: Of all of them; at most n times the number of processes.
    """
    if world() == 1:
        return keep
    best = scores.topk(min(keep, len(scores))).values
    gathered = [torch.empty_like(best) for _ in range(world())]
    dist.all_gather(gathered, best)
    every = torch.stack(gathered)  # (processes, at most keep)
    cut = every.flatten().topk(keep).values[-1]
    larger, tied = (every > cut).sum(1), (every == cut).sum(1)
    spare = keep - larger.sum() - (tied.cumsum(0) - tied)  # what the processes before leave of the ties
    return int((larger + spare.clamp(min=0).minimum(tied))[rank()])


def as_first(values: Iterable[Tensor]) -> None:
    """Replace values, in place, by those of the first process."""
    if world() > 1:
        for value in values:
            dist.broadcast(value, src=0)


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process does something, such as fill a cache, and then the others do."""
    if world() == 1:
        yield
        return
    if rank() > 0:
        dist.barrier()
    try:
        yield
    finally:  # where the first one fails the others follow it, and fail alike
        if rank() == 0:
            dist.barrier()
