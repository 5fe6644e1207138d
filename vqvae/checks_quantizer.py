"""What a quantizer promises: codes and indices that say the same, and learning that a checkpoint can carry.

Axes: b images, n tokens, d dimensions of a code, K codes.
"""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vqvae import checks_model, losses
from vqvae.checks import Subject, during, expect, listed
from vqvae.config import ConfigError
from vqvae.model import build_quantizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from vqvae.codes import Quantized, Quantizer

SCALES = (0.0, 1e-3, 1.0, 1e4)
"""Sizes of the vectors that are quantized."""

SIZES: tuple[dict[str, Any], ...] = (
    {"quantizer.codebook_size": 2},
    {"quantizer.codebook_size": 64},
    {"quantizer.code_dim": 1},
    {"quantizer.code_dim": 7},
)
"""Sizes that are tried besides the small ones."""

OWN_TERMS = {"codebook", "commitment", "entropy", "kl"}
"""Reserved names that are those of quantizers' terms."""

ENUMERATED = 2**14
"""Codes of which every one is decoded, at most; of larger codebooks as many."""


def _build(subject: Subject) -> Quantizer:
    return build_quantizer(subject.config.quantizer)


def codes_and_indices_agree(subject: Subject) -> None:
    """Vectors become float32 codes of their shape, and int64 indices below K that decode to them, bit for bit."""
    quantizer = _build(subject)
    for (images, tokens), scale in itertools.product(((1, 1), (3, 9)), SCALES):
        with during(f"{images} x {tokens} vectors, scale {scale:g}"):
            require_codes(quantizer, scale * torch.randn(images, tokens, quantizer.code_dim))


def require_codes(quantizer: Quantizer, vectors: Tensor) -> None:
    """Holds what becomes of vectors (b, n, d) to the contract, in training mode and in evaluation mode.

    Raises:
        CheckFailed: shape, type, range or value of codes or indices is not what it must be, or a gradient or what
            `end_step` left is not finite.
    """
    size, vectors = quantizer.codebook_size, vectors.detach().requires_grad_()
    for training in (True, False):
        quantizer.train(training).begin_step(1, 10, 0)
        codes, indices, _ = quantizer(vectors)
        expect(
            codes.shape == vectors.shape and codes.dtype == torch.float32,
            f"codes {tuple(vectors.shape)} of torch.float32",
            f"got {tuple(codes.shape)} of {codes.dtype}",
        )
        expect(
            indices.shape == vectors.shape[:2] and indices.dtype == torch.int64,
            f"indices {tuple(vectors.shape[:2])} of torch.int64",
            f"got {tuple(indices.shape)} of {indices.dtype}",
        )
        low, high = int(indices.min()), int(indices.max())
        expect(low >= 0 and high < size, f"indices from 0 to {size - 1}", f"got {low} to {high}")
        decoded = quantizer.decode(indices)
        expect(
            torch.equal(decoded, codes),
            f"decode(indices) to equal the codes bit for bit, in {'training' if training else 'evaluation'} mode",
            f"got {tuple(decoded.shape)}"
            if decoded.shape != codes.shape
            else f"they differ by up to {(decoded - codes).abs().max():.3g}: "
            "v + (code - v).detach() rounds, `vqvae.codes.straight_through` does not",
        )
    leaves = {"the vectors": vectors, **dict(quantizer.named_parameters())}
    loss = _loss(quantizer.train()(vectors))
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True) if loss.requires_grad else ()
    wild = [
        name
        for name, each in zip(leaves, gradients, strict=False)
        if each is not None and not bool(each.isfinite().all())
    ]
    expect(not wild, "finite gradients", f"those of {listed(wild)} hold NaN or infinity")
    quantizer.end_step()
    wild = [name for name, each in quantizer.state_dict().items() if not bool(each.isfinite().all())]
    expect(not wild, "finite values after end_step", f"{listed(wild)} holds NaN or infinity")


def _loss(quantized: Quantized) -> Tensor:
    terms: Iterable[Tensor] = quantized.losses.values()
    return (quantized.codes - 0.3).square().mean() + sum(terms, torch.zeros(()))


def it_takes_other_sizes(subject: Subject) -> None:
    """Other sizes of the codebook and of a code work too, or are refused with a ConfigError when it is built."""
    for size in SIZES:
        with during(", ".join(f"{key} {value}" for key, value in size.items())):
            try:
                quantizer = build_quantizer(
                    subject.changed(**{key.replace(".", "__"): value for key, value in size.items()}).quantizer
                )
            except ConfigError:
                continue
            require_codes(quantizer, torch.randn(2, 5, quantizer.code_dim))


def every_index_has_a_code_of_its_own(subject: Subject) -> None:
    """K indices decode to K different codes (K, d), from the start: bits are counted as log2 K."""
    quantizer = _build(subject)
    count = min(quantizer.codebook_size, ENUMERATED)
    codes = quantizer.decode(torch.arange(count)[None])[0]
    expect(
        codes.shape == (count, quantizer.code_dim), f"codes {(count, quantizer.code_dim)}", f"got {tuple(codes.shape)}"
    )
    different = len(torch.unique(codes, dim=0))
    expect(different == count, f"{count} different codes of {count} indices", f"there are {different}")


def a_code_does_not_depend_on_the_others(subject: Subject) -> None:
    """An index decodes to the same code, bit for bit, whichever indices are decoded beside it."""
    quantizer = _build(subject)
    indices = torch.randint(quantizer.codebook_size, (7, 11))
    codes = quantizer.decode(indices)
    for row, code in zip(indices, codes, strict=True):
        alone = quantizer.decode(row[None])[0]
        expect(
            torch.equal(alone, code),
            "the codes of an image decoded alone to be those within a batch, bit for bit",
            f"they differ by up to {(alone - code).abs().max():.3g}",
        )


def losses_are_named_scalars(subject: Subject) -> None:
    """Its losses are float32 scalars under names of their own, the same ones in every training step."""
    quantizer, names = _build(subject), []
    for step in (1, 2):
        quantizer.begin_step(step, 10, 0)
        found = quantizer(torch.randn(2, 9, quantizer.code_dim)).losses
        quantizer.end_step()
        for name, term in found.items():
            scalar = isinstance(term, torch.Tensor) and term.shape == () and term.dtype == torch.float32
            got = f"{tuple(term.shape)} of {term.dtype}" if isinstance(term, torch.Tensor) else repr(term)
            expect(scalar, f"the loss {name!r} to be a float32 scalar tensor", f"got {got}")
        names.append(list(found))
    expect(names[0] == names[1], f"the losses of step 1, {names[0]}, in every step", f"step 2 has {names[1]}")
    taken = sorted(set(names[0]) & ({*losses.RESERVED, *losses.TERMS} - OWN_TERMS))
    expect(not taken, "names of losses under which nothing else is reported", f"{listed(taken)} is taken")


def the_decoder_reaches_the_vectors(subject: Subject) -> None:
    """The gradient of the codes passes on to every vector, finite and not zero: the encoder learns from the decoder."""
    quantizer = _build(subject)
    vectors = (0.3 * torch.randn(2, 9, quantizer.code_dim)).requires_grad_()
    codes = quantizer(vectors).codes
    expect(codes.requires_grad, "codes with a gradient", "they have none: see `vqvae.codes.straight_through`")
    found = torch.autograd.grad((codes * torch.randn_like(codes)).sum(), vectors, materialize_grads=True)
    gradient = found[0]
    expect(bool(gradient.isfinite().all()), "a finite gradient", "it holds NaN or infinity")
    reached = int((gradient.abs().sum(-1) > 0).sum())
    expect(reached == 18, "a gradient of the codes at each of 18 vectors", f"{reached} have one: see straight_through")


def random_numbers_are_those_of_the_step(subject: Subject) -> None:
    """What it draws in training is a function of seed and step alone, and nothing is drawn in evaluation mode."""
    for training in (True, False):
        runs = []
        for seed in (1, 2):
            torch.default_generator.manual_seed(0)
            quantizer = _build(subject).train(training)
            vectors = torch.randn(2, 30, quantizer.code_dim)
            torch.default_generator.manual_seed(seed)
            quantizer.begin_step(3, 10, 7)
            runs.append((quantizer(vectors).codes, quantizer))
            quantizer.end_step()
        same = torch.equal(runs[0][0], runs[1][0]) and not _different(runs[0][1], runs[1][1])
        expect(
            same,
            f"the same codes and state whatever torch's generator holds, in {'training' if training else 'evaluation'}",
            "they differ: draw from `vqvae.codes.step_generator(step, seed, device)`, made in begin_step",
        )


def _different(one: Quantizer, other: Quantizer) -> list[str]:
    before, after = one.state_dict(), other.state_dict()
    return [name for name in before if not torch.equal(before[name], after[name])]


def state_changes_at_the_end_of_a_step_alone(subject: Subject) -> None:
    """Passes change no buffer, only `end_step` does; a step begun again forgets what its first try has seen."""
    quantizer = _build(subject)
    twice = copy.deepcopy(quantizer)
    first, second = torch.randn(2, 2, 30, quantizer.code_dim)
    for each, batches in ((quantizer, (second,)), (twice, (first, second))):
        before = copy.deepcopy(each)
        for batch in batches:
            each.begin_step(1, 10, 0)
            each(batch)
        moved = _different(before, each)
        expect(not moved, "buffers that a pass leaves alone", f"{listed(moved)} changed before end_step")
        each.end_step()
    apart = _different(quantizer, twice)
    expect(
        not apart,
        "begin_step to forget what came since the last one",
        f"{listed(apart)} differ: a step is taken again with smaller micro-batches where memory runs out",
    )
    before = copy.deepcopy(quantizer)
    quantizer.eval()(first)
    moved = _different(before, quantizer)
    expect(not moved, "evaluation mode to change nothing", f"{listed(moved)} changed")


def copies_go_on_bit_for_bit(subject: Subject) -> None:
    """After some steps a deep copy, and a new one with the state_dict, learn on just like the original."""
    for way in ("copy.deepcopy", "a state_dict"):
        quantizer = _build(subject)
        batches = torch.randn(41, 2, 60, quantizer.code_dim)
        _trained(quantizer, range(1, 15), batches)
        if way == "copy.deepcopy":
            again = copy.deepcopy(quantizer)
        else:
            again = _build(subject)
            again.load_state_dict(quantizer.state_dict(), strict=True)
        torch.default_generator.manual_seed(1)
        for each in (quantizer, again):
            _trained(each, range(15, 41), batches)
        apart = _different(quantizer, again)
        why = "what it learns without gradients must lie in persistent buffers, and follow begin_step's arguments"
        expect(not apart, f"one continued from {way} to learn the same", f"{listed(apart)} differ: {why}")
        before, after = (each.eval()(batches[0]).codes for each in (quantizer, again))
        expect(torch.equal(before, after), f"one continued from {way} to give the same codes", f"they differ: {why}")


def _trained(quantizer: Quantizer, steps: range, batches: Tensor) -> None:
    """A few optimizer steps, driven as the trainer does."""
    for step in steps:
        quantizer.begin_step(step, 40, 7)
        loss = _loss(quantizer(batches[step].clone().requires_grad_()))
        if loss.requires_grad:
            torch.autograd.backward(loss)
        with torch.no_grad():
            for parameter in quantizer.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.05 * parameter.grad)
                    parameter.grad = None
        quantizer.end_step()


def buffers_keep_their_shapes(subject: Subject) -> None:
    """Names and shapes of its buffers never change: the moving average of the weights copies them one by one."""
    quantizer = _build(subject)
    before = {name: buffer.shape for name, buffer in quantizer.named_buffers()}
    _trained(quantizer, range(1, 4), torch.randn(4, 2, 60, quantizer.code_dim))
    after = {name: buffer.shape for name, buffer in quantizer.named_buffers()}
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    expect(not changed, "the same buffers after three steps", f"{listed(changed)} came, went or changed its shape")


def codes_are_quantized_to_themselves(subject: Subject) -> None:
    """Each code, taken as a vector, gets its own index."""
    quantizer = _build(subject).eval()
    every = torch.arange(min(quantizer.codebook_size, ENUMERATED))[None]
    wrong = (quantizer(quantizer.decode(every)).indices != every)[0]
    expect(
        not bool(wrong.any()), "each code to have its own index", f"{int(wrong.sum())} of {every.numel()} get another"
    )


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers in which precision matrices of float32 were multiplied."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if "mm" in str(func):
            self.seen.add(torch.backends.cuda.matmul.fp32_precision)
        return func(*args, **(kwargs or {}))


def indices_do_not_hang_on_tf32(subject: Subject) -> None:
    """Its products of matrices are taken in full float32, so that all machines give an image the same indices."""
    quantizer = _build(subject).eval()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with _Products() as products:
            quantizer.decode(quantizer(torch.randn(2, 9, quantizer.code_dim)).indices)
    finally:
        torch.set_float32_matmul_precision(before)
    expect(
        products.seen <= {"ieee"},
        "products in full precision",
        f"some are in {listed(sorted(products.seen - {'ieee'}))}: see `vqvae.codes.full_precision`",
    )


CHECKS: tuple[Callable[[Subject], None], ...] = (
    codes_and_indices_agree,
    it_takes_other_sizes,
    every_index_has_a_code_of_its_own,
    a_code_does_not_depend_on_the_others,
    losses_are_named_scalars,
    the_decoder_reaches_the_vectors,
    random_numbers_are_those_of_the_step,
    state_changes_at_the_end_of_a_step_alone,
    copies_go_on_bit_for_bit,
    buffers_keep_their_shapes,
    *checks_model.CHECKS,
)
"""Of every quantizer."""

PROMISES = (codes_are_quantized_to_themselves, indices_do_not_hang_on_tf32)
"""Of quantizers that say so."""
