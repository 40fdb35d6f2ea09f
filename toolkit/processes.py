"""Several processes at one training, under torchrun: which one this is, how many there are, sums over all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def joined_processes(device: str) -> Iterator[None]:
    """Join torchrun's other processes, if there are any: over gloo on CPUs, over NCCL with a GPU each."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


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
