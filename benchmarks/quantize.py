"""The nearest of K codes, and a training step of a quantizer: ours beside vector-quantize-pytorch and torch.cdist.

- search: the index of the nearest code of each of 16,384 vectors. Its floor is the product of vectors and codes in
  chunks into one buffer, without looking at it.
- step: forward and backward, codes and vectors with gradients, the codes by their own term of the loss. The plain form
  is `torch.cdist().argmin()` and a gather; vector-quantize-pytorch learns its codes by EMA, since it refuses a
  learnable codebook with cosine similarity.
- memory: how far a process rises above where it stood before its one step, each in a process of its own; on Linux.

Times are medians of alternating repeats; what counts is their ratio. Where a package is missing its column is empty.

python benchmarks/quantize.py              writes benchmarks/results/DATE-quantize.md; about ten minutes on two cores
python benchmarks/quantize.py --quick      one size of each, printed only
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import small
import torch
from torch import Tensor

from vqvae.codes import nearest_codes
from vqvae.config import QuantizerConfig
from vqvae.vector import VectorQuantizer

VECTORS = 16_384
CODES, DIMENSIONS = (1024, 16384, 65536), (8, 16, 64)
FLOOR_ELEMENTS = 2**20
"""Products of the floor's buffer: what stays in the cache of a core."""

PEER = "vector_quantize_pytorch"
Action = Callable[[], object]


def device() -> torch.device:
    """Where it is measured."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def data(codes: int, dimensions: int) -> tuple[Tensor, Tensor]:
    """Vectors and codes, on the unit sphere."""
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randn(rows, dimensions, generator=generator) for rows in (VECTORS, codes))
    vectors, codebook = (torch.nn.functional.normalize(each, dim=1).to(device()) for each in drawn)
    return vectors, codebook


def floor(vectors: Tensor, codebook: Tensor) -> Action:
    """The products alone."""
    rows = max(1, min(len(vectors), FLOOR_ELEMENTS // len(codebook))) if not vectors.is_cuda else 4096
    buffer = vectors.new_empty(rows, len(codebook))

    def run() -> None:
        for start in range(0, len(vectors), rows):
            part = vectors[start : start + rows]
            torch.mm(part, codebook.T, out=buffer[: len(part)])

    return run


def searches(codes: int, dimensions: int) -> dict[str, Action]:
    """Name -> a search; all give the same indices, which is checked."""
    vectors, codebook = data(codes, dimensions)
    found: dict[str, Action] = {
        "floor": floor(vectors, codebook),
        "ours": lambda: nearest_codes(vectors, codebook),
        "cdist": lambda: torch.cdist(vectors, codebook).argmin(1),
    }
    ours, plain = nearest_codes(vectors, codebook), torch.cdist(vectors, codebook).argmin(1)
    distances = [(vectors - codebook[each]).square().sum(1) for each in (ours, plain)]
    assert torch.allclose(*distances, atol=1e-5), "another code is nearer"
    return found


def our_step(codes: int, dimensions: int) -> Action:
    """Forward and backward of our quantizer at the article's settings."""
    vectors, _ = data(codes, dimensions)
    quantizer = VectorQuantizer(QuantizerConfig(codebook_size=codes, code_dim=dimensions)).to(device()).train()
    inputs = vectors[None].requires_grad_()

    def run() -> None:
        result = quantizer(inputs)
        loss = result.codes.square().mean() + sum(result.losses.values())
        loss.backward()

    return run


def plain_step(codes: int, dimensions: int) -> Action:
    """The same as it is mostly written."""
    vectors, codebook = data(codes, dimensions)
    inputs, weight = vectors.requires_grad_(), codebook.requires_grad_()

    def run() -> None:
        unit, table = (torch.nn.functional.normalize(each, dim=1) for each in (inputs, weight))
        chosen = table[torch.cdist(unit, table).argmin(1)]
        passed = unit + (chosen - unit).detach()
        loss = passed.square().mean() + (chosen - unit.detach()).square().mean()
        (loss + 0.25 * (unit - chosen.detach()).square().mean()).backward()

    return run


def peer_step(codes: int, dimensions: int) -> Action:
    """That of vector-quantize-pytorch."""
    from vector_quantize_pytorch import VectorQuantize

    vectors, _ = data(codes, dimensions)
    quantizer = VectorQuantize(dim=dimensions, codebook_size=codes, use_cosine_sim=True).to(device()).train()
    inputs = vectors[None].requires_grad_()

    def run() -> None:
        quantized, _, commitment = quantizer(inputs)
        (quantized.square().mean() + commitment.sum()).backward()

    return run


STEPS = {"ours": our_step, "cdist": plain_step, PEER: peer_step}


def there(name: str) -> bool:
    """Whether a way can be measured here."""
    return name != PEER or importlib.util.find_spec(PEER) is not None


def timed(actions: Mapping[str, Action], repeats: int) -> dict[str, float]:
    """Median seconds of each, taken by turns."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for repeat in range(repeats + 1):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            if device().type == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first one warms up
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def memory(name: str, codes: int, dimensions: int) -> float | None:
    """MiB by which a step raises the peak of a process of its own; None where there was too little."""
    command = [sys.executable, __file__, "--memory", name, str(codes), str(dimensions)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def raised(name: str, codes: int, dimensions: int) -> float:
    """In the process itself: a small step first, so that what is loaded once does not count."""
    STEPS[name](16, dimensions)()
    run = STEPS[name](codes, dimensions)
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew at what is resident now
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def status(name: str) -> float:
    """MiB of this process, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def row(cells: Sequence[str]) -> str:
    """Of a table."""
    return f"| {' | '.join(cells)} |"


def figure(value: float | None, form: str) -> str:
    """A number, or nothing."""
    return "" if value is None else form.format(value)


def main() -> None:
    """Measure, print, and keep the result under its date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--memory", nargs=3, metavar=("WAY", "CODES", "DIMENSIONS"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.memory:
        name, codes, dimensions = chosen.memory
        print(raised(name, int(codes), int(dimensions)))
        return
    sizes = [(1024, 16)] if chosen.quick else list(itertools.product(CODES, DIMENSIONS))
    lines = [
        f"## Search of {VECTORS:,} vectors on {device().type}\n",
        row(["codes", "dimensions", "floor, s", "ours, s", "cdist, s", "ours / floor", "cdist / ours"]),
        row(["---:"] * 7),
    ]
    for codes, dimensions in sizes:
        taken = timed(searches(codes, dimensions), 5 if codes < 65536 else 3)
        cells = [f"{taken[name]:.4f}" for name in ("floor", "ours", "cdist")]
        ratios = [f"{taken['ours'] / taken['floor']:.2f}", f"{taken['cdist'] / taken['ours']:.2f}"]
        lines.append(row([f"{codes:,}", str(dimensions), *cells, *ratios]))
        print(lines[-1], flush=True)
    ways = [name for name in STEPS if there(name)]
    lines += [
        "\n## A step: forward and backward\n",
        row(["codes", "dimensions", *(f"{name}, s" for name in ways), *(f"{name}, MiB" for name in ways)]),
        row(["---:"] * (2 + 2 * len(ways))),
    ]
    for codes, dimensions in sizes:
        if codes == 65536 and dimensions != 16:
            continue  # the peer's table of one-hot codes has 16 GiB there: once will do
        held = {name: memory(name, codes, dimensions) for name in ways}
        able = [name for name in ways if held[name] is not None]
        taken = timed({name: STEPS[name](codes, dimensions) for name in able}, 3)
        cells = [figure(taken.get(name), "{:.3f}") for name in ways] + [figure(held[name], "{:,.0f}") for name in ways]
        lines.append(row([f"{codes:,}", str(dimensions), *cells]))
        print(lines[-1], flush=True)
    text = small.heading("Quantizers", "python benchmarks/quantize.py") + "\n" + "\n".join(lines) + "\n"
    print(text)
    if not chosen.quick:
        small.write("quantize", text)


if __name__ == "__main__":
    main()
