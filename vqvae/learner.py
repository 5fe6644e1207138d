"""A model in training: its weights, what optimizes them, and one step after the other.

An optimizer step is a transaction: gradients are gathered micro-batch by micro-batch, and nothing else changes until
all of them are there. So a step that runs out of memory is taken again with smaller micro-batches, and training goes
on where it was, at the same batch.

b images of a micro-batch, h height, w width
"""

from __future__ import annotations

import copy
import dataclasses
import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch

from vqvae.checkpoint import CheckpointError
from vqvae.config import TrainConfig, VqvaeError, require
from vqvae.discriminator import Gan, parametrized
from vqvae.losses import Loss
from vqvae.model import build_model, factors
from vqvae.optimizer import (
    build_optimizer,
    learning_rate_factor,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rate,
    update_average,
)
from vqvae.parametrization import adam
from vqvae.processes import ALONE, MemoryElsewhere, Processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

_Result = TypeVar("_Result")

CPU_MICRO_BATCH = 16
"""Images at once where micro_batch is auto and the device is the CPU, which has nothing to gain from more."""


class OutOfMemory(VqvaeError):  # noqa: N818
    """The device has too little memory for a micro-batch."""


class Learner:
    """Model, discriminator, optimizers and the moving average of the weights.

    Args:
        config: of the run.
        device: where all of it lives.
        processes: those that train together; each calls `advance` and `settle` as often.

    Raises:
        ConfigError: sizes that do not fit together.
        WeightsError: the perceptual term is on and its trunk has no weights.
        OutOfMemory: of the device.
    """

    def __init__(self, config: TrainConfig, device: torch.device, processes: Processes = ALONE) -> None:
        self.config, self.device, self.processes = config, device, processes
        self.share = config.batch_size // processes.size
        """Images of an optimizer step that go through this process."""
        self.step = 0
        """Optimizer steps done."""
        self.micro_batch = _first_micro_batch(config, device, processes)
        self.bfloat16 = config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")
        self.loss = Loss(config.loss)
        self.gan: Gan | None = None
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            self.model = build_model(config)
            judged = {}
            if config.gan.weight:
                self.gan = Gan(config.gan)
                judged = parametrized(self.gan.discriminator, config)
        with self._memory():
            self.model.to(device).train()
            self.loss.to(device)
            if self.gan:
                self.gan.to(device)
            self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.loss.processes = self.model.quantizer.processes = processes  # not the average's, which one measures alone
        settings, fast = adam(config), self.model.quantizer.fast_parameters()
        scales = factors(self.model, config)
        self.optimizer = build_optimizer(self.model, settings, fast, config.quantizer.lr_multiplier, scales)
        self.gan_optimizer: torch.optim.AdamW | None = None
        if self.gan:
            own = {name: getattr(config.gan, name) for name in ("lr", "beta1", "beta2")}
            settings = dataclasses.replace(settings, weight_decay=0.0, **own)
            self.gan_optimizer = build_optimizer(self.gan.discriminator, settings, scales=judged)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        if config.compile == "always" or (config.compile == "auto" and device.type == "cuda"):
            self.model.compile_blocks()

    def advance(self, batch: Callable[[slice], Tensor]) -> dict[str, Tensor]:
        """Takes one optimizer step; nothing in it waits for the device.

        Args:
            batch: gives some of the step's images, (b, 3, h, w) in [-1, 1]; it is asked for slices of
                `config.batch_size`, again if memory runs out.

        Returns:
            The means of the terms over the batch, detached scalars.

        Raises:
            OutOfMemory: at a micro-batch that can't be made smaller.
        """
        terms = self.in_memory(lambda: self._together(lambda: self._gradients(batch)))
        with self._memory():
            terms = self._exchange(terms)
            self._update()
        return terms

    def in_memory(self, work: Callable[[], _Result]) -> _Result:
        """Does `work`, and does it again with half the micro-batch whenever the device runs out of memory.

        Args:
            work: anything that can be repeated, and reads `micro_batch` anew.

        Raises:
            OutOfMemory: the micro-batch is fixed, or one image.
        """
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                if self.config.micro_batch != "auto" or self.micro_batch == 1:
                    smaller = "model" if self.micro_batch == 1 else "micro_batch (or auto) or model"
                    raise self._exhausted(smaller) from error
            # Here the error is gone, and with it the frames that held on to the memory.
            self.micro_batch = _divisor(self.share, self.micro_batch // 2)
            self._clear_gradients()
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """What the averaged weights make of images on the CPU, (b, 3, h, w) in [-1, 1]; comes back to it.

        Raises:
            OutOfMemory: at a micro-batch that can't be made smaller.
        """

        def made() -> Tensor:
            parts = torch.split(images, self.micro_batch)
            return torch.cat([self.average(part.to(self.device)).images.cpu() for part in parts])

        return self.in_memory(made)

    @property
    def at_once(self) -> int:
        """Images of a batch that are on all devices together at once."""
        return self.micro_batch * self.processes.size

    def settle(self) -> None:
        """Before all processes go on from where one of them did more than the others.

        Raises:
            VqvaeError: they no longer train the same model.
        """
        if self.processes.size > 1:
            self.micro_batch = self.processes.least(self.micro_batch)
            trained = {"model": self.model} | ({"discriminator": self.gan.discriminator} if self.gan else {})
            states = {f"{part}.{name}": value for part in trained for name, value in trained[part].state_dict().items()}
            self.processes.require_equal(states, self.step)

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """All that a checkpoint has to carry, by part."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "model": self.model.state_dict(),
            "ema": self.average.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.model),
        }
        if self.gan and self.gan_optimizer:
            discriminator = self.gan.discriminator
            parts["discriminator"] = discriminator.state_dict()
            parts["discriminator_optimizer"] = optimizer_tensors(self.gan_optimizer, discriminator)
        return parts

    def restore(self, step: int, micro_batch: int, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """The inverse of `tensors`.

        Args:
            step: optimizer steps done.
            micro_batch: `at_once` of the run, as far as it had come down; taken over where it is auto.
            parts: of a learner of the same config.

        Raises:
            CheckpointError: parts or tensors of another model.
            OutOfMemory: of the device.
        """
        try:
            with self._memory():  # inside, since memory that ends is a RuntimeError too
                self.model.load_state_dict(parts["model"])
                self.average.load_state_dict(parts["ema"])
                restore_optimizer(self.optimizer, self.model, parts["optimizer"])
                if self.gan and self.gan_optimizer:
                    discriminator = self.gan.discriminator
                    discriminator.load_state_dict(parts["discriminator"])
                    restore_optimizer(self.gan_optimizer, discriminator, parts["discriminator_optimizer"])
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(f"does not fit the model that its config builds: {error}") from error
        self.step = step
        if self.config.micro_batch == "auto":
            self.micro_batch = _divisor(self.share, min(self.micro_batch, max(1, micro_batch // self.processes.size)))

    def _gradients(self, batch: Callable[[slice], Tensor]) -> dict[str, Tensor]:
        config, size = self.config, self.micro_batch
        share = size / config.batch_size
        gan = self.gan if self.step >= round(config.gan.start * config.steps) else None
        last_weight = self.model.last_weight() if gan and config.gan.adaptive else None
        self.model.quantizer.begin_step(self.step + 1, config.steps, config.seed)
        parts = []
        for start in range(self.processes.rank * size, config.batch_size, self.at_once):
            images = batch(slice(start, start + size))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                reconstruction = self.model(images)
                loss, terms = self.loss(images, reconstruction, gan, last_weight)
            torch.autograd.backward(loss * share)
            if gan:
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                    loss, judged = gan.discriminator_loss(images, reconstruction.images)
                torch.autograd.backward(loss * share)
                terms |= judged
            parts.append(terms)
        return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}

    def _together(self, work: Callable[[], _Result]) -> _Result:
        """Does what every process does at this point, and gives up with those whose memory ends in it."""
        if self.processes.size == 1:
            return work()
        try:
            done = work()
        except MemoryElsewhere:
            raise
        except RuntimeError as error:
            if _is_out_of_memory(error):
                self.processes.any([True])
            raise
        self.processes.require_memory()
        return done

    def _exchange(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums the gradients over the processes, and averages the terms."""
        processes = self.processes
        if processes.size == 1:
            return terms
        trained = [*self.model.parameters(), *(self.gan.discriminator.parameters() if self.gan else ())]
        reached = processes.any([parameter.grad is not None for parameter in trained])
        gradients = []
        for parameter, somewhere in zip(trained, reached, strict=True):
            if somewhere:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradients.append(parameter.grad)
        means = torch.stack(list(terms.values())) / processes.size
        processes.add([means, *gradients])
        return dict(zip(terms, means.unbind(), strict=True))

    def _update(self) -> None:
        config, step = self.config, self.step + 1
        factor = learning_rate_factor(step, config)
        if config.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optimizer.clip_norm)
        for optimizer in (self.optimizer, self.gan_optimizer):
            if optimizer:
                set_learning_rate(optimizer, factor)
                optimizer.step()
        self._clear_gradients()
        self.model.quantizer.end_step()
        self.step = step
        update_average(self.average, self.model, step, config.ema_decay)

    def _clear_gradients(self) -> None:
        self.model.zero_grad()
        if self.gan:
            self.gan.zero_grad()

    @contextmanager
    def _memory(self) -> Iterator[None]:
        """Where smaller micro-batches would not help: weights, gradients and moments."""
        try:
            yield
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            raise self._exhausted("model") from error

    def _exhausted(self, smaller: str) -> OutOfMemory:
        return OutOfMemory(
            f"out of memory on {self.device} at a micro-batch of {self.micro_batch} images of "
            f"{self.config.data.resolution} pixels; expected a smaller {smaller}"
        )


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Whether the device ran out of memory: also where a library of CUDA says so in its own words."""
    words = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def require_shares(config: TrainConfig, processes: int) -> None:
    """Refuses a batch that can't be shared out evenly.

    Raises:
        ConfigError: batch_size, or a fixed micro_batch, is no multiple of the processes.
    """
    for key in ("batch_size", "micro_batch"):
        value = getattr(config, key)
        held = value == "auto" or value % processes == 0
        require(held, key, f"a multiple of the {processes} processes that share it", value)


def _first_micro_batch(config: TrainConfig, device: torch.device, processes: Processes) -> int:
    share = config.batch_size // processes.size
    if config.micro_batch != "auto":
        return config.micro_batch // processes.size
    if device.type == "cuda":
        return share
    return _divisor(share, max(1, _divisor(config.batch_size, CPU_MICRO_BATCH) // processes.size))


def _divisor(number: int, most: int) -> int:
    """The greatest divisor of `number` that is at most `most`."""
    return next(size for size in range(min(number, most), 0, -1) if number % size == 0)
