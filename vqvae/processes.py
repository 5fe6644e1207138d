"""Several processes that train one model together, each on a device of its own and on its share of every batch.

Each has the whole model, the same weights and the same place in the run. A step is that of one process with as many
images at once as all of them have together: what is a mean over images is averaged over the processes, and gradients
are summed by one plain all-reduce after the backward passes. `DistributedDataParallel` would hook into them instead:
with accumulation, a second pass for the discriminator and gradients taken at the last layer it has to be told at each
backward pass whether to exchange, and its gain, exchange during the pass, is small for models of this size.

What a process decides by itself, such as to stop or that its memory has ended, all of them have to know: `any` is
asked on the CPU and waits for no device.
"""

from __future__ import annotations

import datetime
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from vqvae.config import VqvaeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

PATIENCE = datetime.timedelta(days=7)
"""How long a process waits for the others: one of them evaluates and writes alone. Whoever started them sees to it that
none waits for one that is gone."""

DRIFT = 1e-3
"""Norm of a difference / norm of a tensor, past which two processes no longer train one model; devices of two kinds may
differ by rounding."""


class MemoryElsewhere(torch.OutOfMemoryError):
    """The device of another process ran out of memory."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """All the processes of a run, seen from one of them."""

    rank: int = 0
    """This one's number; 0 evaluates and writes."""
    size: int = 1
    """How many there are. Where it is 1 nothing below costs anything."""

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Which of these flags is set in any process; all of them ask together."""
        if self.size == 1:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(votes, dist.ReduceOp.MAX)
        return votes.bool().tolist()

    def least(self, value: int) -> int:
        """The least of the numbers that the processes have."""
        if self.size == 1:
            return value
        votes = torch.tensor([value])
        dist.all_reduce(votes, dist.ReduceOp.MIN)
        return int(votes.item())

    @torch.no_grad()
    def add(self, tensors: Sequence[Tensor]) -> None:
        """Puts in place of each tensor its sum over the processes, bit for bit the same in all of them."""
        if self.size == 1:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.flatten() for tensor in alike])
            dist.all_reduce(flat)
            for tensor, total in zip(alike, torch.split(flat, [tensor.numel() for tensor in alike]), strict=True):
                tensor.copy_(total.view_as(tensor))

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the processes, with the gradient of this one's own part.

        A loss of such means, summed over the processes after each has weighed its own by 1 / size, has the gradient of
        the loss of all images together; so no backward pass has to exchange anything.

        Args:
            value: of the same shape everywhere, itself a mean over as many images.

        Raises:
            MemoryElsewhere: another process will not come to this point.
        """
        if self.size == 1:
            return value
        self.require_memory()
        everyone = value.detach().clone()
        dist.all_reduce(everyone)
        return everyone / self.size + (value - value.detach())

    def gathered(self, value: Tensor) -> Tensor:
        """The rows of all processes, in the order of their ranks.

        Args:
            value: (rows, ...), of the same shape everywhere.
        """
        if self.size == 1:
            return value
        parts = [torch.empty_like(value) for _ in range(self.size)]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    def require_memory(self) -> None:
        """Before all of them exchange what they have computed.

        Raises:
            MemoryElsewhere: one of them has no memory left and has said so by `any([True])`.
        """
        if self.any([False])[0]:
            raise MemoryElsewhere("another process ran out of memory")

    @torch.no_grad()
    def require_equal(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Holds this process's tensors to those of the first one.

        Args:
            tensors: the same names everywhere.
            step: optimizer steps done, for the message.

        Raises:
            VqvaeError: naming the first one that differs.
        """
        if self.size == 1:
            return
        apart = []
        for value in tensors.values():
            first = value.detach().clone()
            dist.broadcast(first, 0)
            apart.append((first.double() - value.double()).norm() > DRIFT * first.double().norm())
        for name, differs in zip(tensors, torch.stack(apart).tolist(), strict=True):
            if differs:
                raise VqvaeError(
                    f"{name}: differs between processes 0 and {self.rank} after step {step}; expected that a part "
                    "which learns without gradients learns from all processes, see Quantizer.processes"
                )


ALONE = Processes()


@contextmanager
def joined(rank: int, size: int, device: torch.device, meeting: Path) -> Iterator[Processes]:
    """This process as one of several on one machine, for as long as the context lasts.

    They meet through a file and talk over the loopback interface, so that no port is open to other machines.

    Args:
        rank: its number, from 0.
        size: how many there are.
        device: what it trains on; on cuda the collectives are NCCL's, and those on the CPU always gloo's.
        meeting: a file that does not exist yet, the same for all.
    """
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, "lo")
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store = dist.FileStore(str(meeting), size)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    processes = Processes(rank=rank, size=size)
    try:
        yield processes
        processes.any([False])  # none leaves while another one still needs it
    finally:
        dist.destroy_process_group()
