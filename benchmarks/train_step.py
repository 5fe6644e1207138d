"""A step of training: ours beside the article's recipe, eager and compiled, and vector-quantize-pytorch in its model.

Measured is the attention backbone: the recipe's Mamba needs mamba_ssm, and its convolution is not written here. On a
GPU it has the article's sizes and bfloat16, on a CPU a small model in float32. A step is all that happens between two
batches: forwards, LPIPS if the package `lpips` is there, backwards, AdamW (the recipe's as torch makes it, fused on a
GPU); ours keeps a moving average of its weights on top. The recipe accumulates micro-batches of 16 images, as the
article did; ours takes what the trainer takes.

Times are medians of alternating repeats; what counts is their ratio. Memory is how far a second step raises the peak of
a process of its own above what stayed after a first one (weights, moments, compiled code); on Linux, or CUDA's own
count.

python benchmarks/train_step.py              writes benchmarks/results/DATE-train_step.md
python benchmarks/train_step.py --quick      a tiny model, without the compiled form and memory; printed only
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import quantize
import recipe
import small
import torch

from vqvae.config import TrainConfig
from vqvae.conversion import replace
from vqvae.learner import Learner

WAYS = ("ours", "eager", "compiled", quantize.PEER)
MICRO_BATCH = 16
WANTED = {"cpu": 1.2, "cuda": 1.3}
"""Images a second of ours over those of the compiled recipe (on a CPU, of the better form)."""


def settings(codes: int, *, quick: bool) -> TrainConfig:
    """What both sides train."""
    there = importlib.util.find_spec("lpips") is not None
    values = {
        "model.backbone": "attention",
        "quantizer.codebook_size": codes,
        "loss.perceptual": 0.1 * there,
        "loss.lpips_trunk": "random",
    }
    if quantize.device().type == "cuda":
        values |= {"model.width": 384, "model.depth": 6}
    else:
        width, depth, resolution = (32, 1, 32) if quick else (128, 2, 64)
        values |= {"model.width": width, "model.depth": depth, "model.head_size": 32, "data.resolution": resolution}
        values["batch_size"] = 16
    return replace(TrainConfig(), values)


def our_step(config: TrainConfig) -> Callable[[], object]:
    """The trainer's own step, on images that are there already."""
    learner = Learner(config, quantize.device())
    images = pictures(config)
    return lambda: learner.advance(lambda part: images[part])


def recipe_step(config: TrainConfig, way: str) -> Callable[[], object]:
    """The article's."""
    device = quantize.device()
    model: torch.nn.Module = recipe.Model(config, recipe.Library if way == quantize.PEER else recipe.Quantizer)
    model.to(device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=device.type == "cuda"
    )
    weight = config.loss.perceptual
    lpips = recipe.perceptual(device) if weight else None
    run = torch.compile(model) if way == "compiled" else model
    images = pictures(config)
    parts = images.split(MICRO_BATCH)

    def step() -> None:
        for part in parts:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                made, quantized = run(part)
                loss = torch.nn.functional.mse_loss(made, part) + quantized
                if lpips is not None:
                    loss = loss + weight * lpips(made, part).mean()
            (loss / len(parts)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def pictures(config: TrainConfig) -> torch.Tensor:
    """A batch, in [-1, 1]."""
    side = config.data.resolution
    return (torch.rand(config.batch_size, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(
        quantize.device()
    )


def step_of(way: str, config: TrainConfig) -> Callable[[], object]:
    """A step of either side."""
    return our_step(config) if way == "ours" else recipe_step(config, way)


def require_alike(config: TrainConfig) -> None:
    """Both train models of one size, and choose the same codes."""
    ours, theirs = Learner(config, torch.device("cpu")).model, recipe.Model(config)
    counts = [sum(each.numel() for each in model.parameters()) for model in (ours, theirs)]
    assert counts[0] == counts[1], f"{counts} parameters"
    with torch.no_grad():
        theirs.quantiser.codebook.weight.copy_(ours.quantizer.codebook)
        vectors = torch.randn(4, 64, config.quantizer.code_dim, generator=torch.Generator().manual_seed(0))
        found = ours.quantizer(vectors)
        codes, indices, loss = theirs.quantiser(vectors)
    assert torch.equal(found.indices, indices), "other codes"
    torch.testing.assert_close(found.codes, codes)
    torch.testing.assert_close(sum(found.losses.values()), loss)


def raised(way: str, codes: int) -> float:
    """MiB by which a second step raises the peak of this process."""
    run = step_of(way, settings(codes, quick=False))
    run()  # compiles, and makes the moments
    gc.collect()
    if quantize.device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what was freed counts as resident until it is handed back
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew at what is resident now
    before = quantize.status("VmRSS")
    run()
    return quantize.status("VmHWM") - before


def memory(way: str, codes: int) -> float | None:
    """The same in a process of its own; None where it failed."""
    command = [sys.executable, __file__, "--memory", way, str(codes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def main() -> None:
    """Measure, print, and keep the result under its date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--memory", nargs=2, metavar=("WAY", "CODES"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.memory:
        print(raised(chosen.memory[0], int(chosen.memory[1])))
        return
    quick, kind = chosen.quick, quantize.device().type
    ways = [way for way in WAYS if quantize.there(way) and not (quick and way == "compiled")]
    lines = [
        quantize.row(["codes", *(f"{way}, images/s" for way in ways), *(f"{way}, MiB" for way in ways if not quick),
                      "ours / best recipe", "wanted"]),
    ]  # fmt: skip
    lines.append(quantize.row(["---:"] * (3 + len(ways) * (1 if quick else 2))))
    for codes in (1024,) if quick else (1024, 16384):
        config = settings(codes, quick=quick)
        require_alike(config)
        torch.manual_seed(0)
        taken = quantize.timed({way: step_of(way, config) for way in ways}, 3 if quick else 9)
        rates = {way: config.batch_size / seconds for way, seconds in taken.items()}
        best = max(rates[way] for way in ("eager", "compiled") if way in rates)
        held = [] if quick else [quantize.figure(memory(way, codes), "{:,.0f}") for way in ways]
        ratio = f"{rates['ours'] / best:.2f}"
        lines.append(
            quantize.row([f"{codes:,}", *(f"{rates[way]:.1f}" for way in ways), *held, ratio, str(WANTED[kind])])
        )
        print(lines[-1], flush=True)
    left = [f"{way}: {'not in --quick' if way == 'compiled' else 'not installed'}" for way in WAYS if way not in ways]
    left += [] if config.loss.perceptual else ["LPIPS, of both: lpips not installed"]
    text = f"Attention on {kind}, {config.data.resolution} px, batch {config.batch_size}.\n\n" + "\n".join(lines) + "\n"
    text += f"\nLeft out: {'; '.join(left)}.\n" if left else ""
    print(text)
    if not quick:
        small.write("train_step", small.heading("A training step", "python benchmarks/train_step.py") + "\n" + text)


if __name__ == "__main__":
    main()
