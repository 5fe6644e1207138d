"""Whether settings transfer from narrow and shallow models to wide and deep ones: three gates, measured.

    python benchmarks/transfer.py measure rows.jsonl [--gate rate] [--backbone mamba] [--seeds 2] [--until 00:25]
    python benchmarks/transfer.py report rows.jsonl

`measure` appends a line to the file for each thing it has measured and leaves out what is there: it may be stopped and
started again at any time, and is best left in the background (`nice -n 19`); it uses one thread. `report` writes the
tables and the picture of whatever is there under benchmarks/results, with the date of the last line.

- width: the coordinate check of `vqvae.coordinates`, widths 64 to 512, learning rate 3e-3, two steps, two seeds.
- depth: the same of the trunk, depths 2 to 8, learning rate 1e-4, with residuals scaled and not.
- rate: bundled photographs, 150 steps at learning rates in factors of two, at widths 32, 64 and 128, three seeds. The
  regret is the loss of the wide model at the rate that was best for the narrow one / its loss at its own best rate - 1.
  Codes that are hardly drawn restart: without that a codebook collapses or not by chance, at any rate.

The loss is the mean squared error of pixels in [-1, 1]: of the last fifth of the steps, on crops that the model has not
seen before, of the photographs that it trains on. At the narrow width, the base, all kinds are the same model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from vqvae.batches import batch
from vqvae.config import TrainConfig
from vqvae.conversion import replace
from vqvae.coordinates import LIMITS, coordinates, trends
from vqvae.data import load
from vqvae.learner import Learner

BACKBONES = ("attention", "mamba", "mambavision", "convolution", "bimamba")
KINDS = ("standard", "sp-full-align")
WIDTHS, DEPTHS = (64, 128, 256, 512), (2, 4, 8)
NARROW, BETWEEN, WIDE = 32, 64, 128
RATES = tuple(2.0**power for power in range(-11, -4))
STEPS = 150

Row = dict[str, Any]


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("rows", type=Path, help="file with a JSON object a line")
    measuring.add_argument("--gate", choices=("width", "depth", "rate"), action="append", help="default: all")
    measuring.add_argument("--backbone", choices=BACKBONES, action="append", help="default: all")
    measuring.add_argument("--seeds", type=int, default=3, help="of the rates; default: 3")
    measuring.add_argument("--until", metavar="HH:MM", help="begin nothing after this time of day, UTC")
    measuring.add_argument("--quick", action="store_true", help="widths up to 128, 10 steps, 3 rates: does it work?")
    reporting = commands.add_parser("report")
    reporting.add_argument("rows", type=Path)
    reporting.add_argument("--to", type=Path, default=Path(__file__).parent / "results", help="default: its results")
    arguments = parser.parse_args()
    if arguments.command == "report":
        report(read(arguments.rows), arguments.to)
        return
    torch.set_num_threads(1)
    there = {key(row) for row in read(arguments.rows)}
    end = deadline(arguments.until)
    for wanted in plan(arguments.gate, arguments.backbone or BACKBONES, arguments.seeds, arguments.quick):
        if key(wanted) in there:
            continue
        if end and datetime.now(UTC) > end:
            print(f"it is past {arguments.until}: stopped")
            return
        started = time.process_time()
        row = {**wanted, **MEASURES[wanted["gate"]](wanted)}
        row |= {"cpu_s": round(time.process_time() - started, 1), "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M}"}
        with arguments.rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def deadline(until: str | None) -> datetime | None:
    """The next time at which a clock shows `until`."""
    if until is None:
        return None
    now = datetime.now(UTC)
    hour, minute = map(int, until.split(":"))
    end = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return end if end > now else datetime.fromtimestamp(end.timestamp() + 86400, UTC)


def plan(gates: list[str] | None, backbones: tuple[str, ...], seeds: int, quick: bool) -> Iterator[Row]:
    """What is to be measured, cheap and telling things first."""
    gates = gates or ["width", "depth", "rate"]
    if "width" in gates:
        for backbone in backbones:
            for kind in KINDS:
                yield {"gate": "width", "backbone": backbone, "kind": kind, "sizes": WIDTHS[:2] if quick else WIDTHS}
    if "depth" in gates:
        for backbone in backbones:
            for base_depth in (0, DEPTHS[0]):
                yield {
                    "gate": "depth",
                    "backbone": backbone,
                    "base_depth": base_depth,
                    "sizes": DEPTHS[:2] if quick else DEPTHS,
                }
    if "rate" in gates:
        rates, steps = (RATES[4:7], 10) if quick else (RATES, STEPS)
        first = [("standard", NARROW), *((kind, WIDE) for kind in KINDS)]
        for models in (first, [(kind, BETWEEN) for kind in KINDS]):
            for backbone, seed in itertools.product(backbones, range(seeds)):
                for kind, width in models:
                    for rate in rates:
                        yield {
                            "gate": "rate",
                            "backbone": backbone,
                            "kind": kind,
                            "width": width,
                            "lr": rate,
                            "seed": seed,
                            "steps": steps,
                        }


def config(row: Row, settings: Mapping[str, Any]) -> TrainConfig:
    """The model of a row: 16 tokens, two blocks a side."""
    convolution = row["backbone"] == "convolution"  # a quarter of the pixels, for the time of its large kernels
    values = {
        "model": {
            "backbone": row["backbone"],
            "depth": 1 if convolution else 2,
            "head_size": 16,
            "state_size": 16,
            "patch": 4 if convolution else 8,
        },
        "quantizer": {"codebook_size": 256, "code_dim": 8, "revive_below": 0.03},
        "loss.perceptual": 0.0,
        "data.resolution": 16 if convolution else 32,
        "optimizer.epsilon": 1e-12,  # also of standard, so that at the base all kinds are the same
        "device": "cpu",
    }
    return replace(replace(TrainConfig(), values), settings)


def width(row: Row) -> Row:
    """Slopes of what two steps change, against the width."""
    chosen = {"kind": row["kind"], "base_width": row["sizes"][0]}
    settings = {"parametrization": chosen, "optimizer.lr": 3e-3}
    found = trends(coordinates(config(row, settings), row["sizes"]))
    return {"slopes": {trend.role: round(trend.change, 3) for trend in found}}


def depth(row: Row) -> Row:
    """The same against the depth."""
    chosen = {"kind": "sp-full-align", "base_width": 64, "base_depth": row["base_depth"]}
    settings = {"model.width": 64, "parametrization": chosen, "optimizer.lr": 1e-4}
    found = trends(coordinates(config(row, settings), row["sizes"], along="depth"))
    return {
        "slopes": {trend.role: round(trend.change, 3) for trend in found},
        "relative": next(round(trend.change - trend.before, 3) for trend in found if trend.role == "trunk"),
    }


def rate(row: Row) -> Row:
    """The loss of one run."""
    settings = {
        "model.width": row["width"],
        "parametrization": {"kind": row["kind"], "base_width": NARROW},
        "optimizer": {"lr": row["lr"], "warmup_steps": row["steps"] // 10},
        "steps": row["steps"],
        "seed": row["seed"],
        "batch_size": 16,
    }
    run = config(row, settings)
    learner, images = Learner(run, torch.device("cpu")), load(run.data).train
    losses = []
    for step in range(run.steps):
        terms = learner.advance(lambda part, step=step: batch(images, run, step, part, learner.device))
        losses.append(terms["l2"].item())
    last = losses[-(run.steps // 5) :]
    return {"loss": sum(last) / len(last) if math.isfinite(sum(last)) else None}


MEASURES = {"width": width, "depth": depth, "rate": rate}


def read(file: Path) -> list[Row]:
    """The rows of a file; none where there is no file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def key(row: Row) -> str:
    """What a row measures."""
    names = ("gate", "backbone", "kind", "base_depth", "sizes", "width", "lr", "seed", "steps")
    return json.dumps([row.get(name) for name in names])


def report(rows: list[Row], folder: Path) -> None:
    """Tables and picture of what there is, each thing once."""
    rows = list({key(row): row for row in rows}.values())
    day = max(row["at"] for row in rows)[:10]
    parts = [
        f"# Transfer over width and depth, {day}\n",
        f"`python benchmarks/transfer.py measure`, {len(rows)} [rows]({day}-transfer.jsonl), one thread of "
        f"{os.cpu_count()} cores ({platform.machine()}, {platform.system()}), "
        f"Python {platform.python_version()}, torch {torch.__version__}; "
        f"{sum(row['cpu_s'] for row in rows) / 60:.0f} CPU minutes.\n",
    ]
    by_gate = {gate: [row for row in rows if row["gate"] == gate] for gate in MEASURES}
    if by_gate["width"]:
        parts.append(widths(by_gate["width"]))
    if by_gate["depth"]:
        parts.append(depths(by_gate["depth"]))
    if by_gate["rate"]:
        picture = f"{day}-transfer.png"
        parts.append(regrets(by_gate["rate"]) + f"\n![loss against learning rate]({picture})\n")
        draw(by_gate["rate"], folder / picture)
    (folder / f"{day}-transfer.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / f"{day}-transfer.md").write_text("\n".join(parts))


def widths(rows: list[Row]) -> str:
    """Table of the slopes against the width."""
    lines = [
        f"## Change against width, {' to '.join(str(rows[0]['sizes'][end]) for end in (0, -1))}\n",
        f"Slope of log(change after two steps) against log(width), lr 3e-3, two seeds. Limits: {said(LIMITS)}.\n",
        f"| backbone | kind | {' | '.join(LIMITS)} |\n| --- | --- |{' ---: |' * len(LIMITS)}",
    ]
    for row in rows:
        found = (f"{row['slopes'][role]:+.2f}" if role in row["slopes"] else "" for role in LIMITS)
        lines.append(f"| {row['backbone']} | {row['kind']} | {' | '.join(found)} |")
    return "\n".join(lines) + "\n"


def said(limits: Mapping[str, float]) -> str:
    """Limits in words."""
    return ", ".join(f"{role} {limit:g}" for role, limit in limits.items())


def depths(rows: list[Row]) -> str:
    """Table of the slopes against the depth."""
    lines = [
        f"## Change of the trunk against depth, {' to '.join(str(rows[0]['sizes'][end]) for end in (0, -1))}\n",
        "As above, lr 1e-4; relative: the change / the trunk's initial size. bimamba takes no scale.\n",
        "| backbone | residual scale | change | relative |\n| --- | --- | ---: | ---: |",
    ]
    for row in rows:
        scale = f"{row['base_depth']} / depth" if row["base_depth"] else "1"
        lines.append(f"| {row['backbone']} | {scale} | {row['slopes']['trunk']:+.2f} | {row['relative']:+.2f} |")
    return "\n".join(lines) + "\n"


def curve(rows: list[Row], backbone: str, kind: str, width: int) -> dict[float, float]:
    """Learning rate -> mean loss over the seeds; infinite where one diverged."""
    losses: dict[float, list[float]] = {}
    for row in rows:
        if (row["backbone"], row["width"]) == (backbone, width) and (row["kind"] == kind or width == NARROW):
            losses.setdefault(row["lr"], []).append(math.inf if row["loss"] is None else row["loss"])
    return {lr: sum(each) / len(each) for lr, each in sorted(losses.items())}


def uncertainty(rows: list[Row], backbone: str, kind: str, first: float, best: float) -> str:
    """Standard error of a regret, from the seeds' own: the same rates for all of them."""
    losses = {
        (row["seed"], row["lr"]): row["loss"]
        for row in rows
        if (row["backbone"], row["kind"], row["width"]) == (backbone, kind, WIDE) and row["loss"] is not None
    }
    seeds = sorted({seed for seed, _ in losses})
    own = [losses[seed, first] / losses[seed, best] - 1 for seed in seeds if (seed, first) in losses]
    return f"{statistics.stdev(own) / math.sqrt(len(own)):.1%}" if len(own) > 1 else ""


def regrets(rows: list[Row]) -> str:
    """Table of regrets and of the shift of the best rate."""
    lines = [
        f"## Learning rate, width {NARROW} to {WIDE}\n",
        f"{rows[0]['steps']} steps of 16 images; seeds: {len({row['seed'] for row in rows})}. Regret: loss at the rate "
        "that was best for the narrow model / least loss - 1, of the means over the seeds; its standard error is that "
        "of the seeds' own. Shift: octaves from the one rate to the other.\n",
        "| backbone | kind | rates | best narrow | best wide | shift | regret | standard error |\n"
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for backbone in BACKBONES:
        narrow = curve(rows, backbone, "standard", NARROW)
        for kind in KINDS:
            wide = curve(rows, backbone, kind, WIDE)
            if not narrow or wide.keys() != narrow.keys():
                continue  # not all measured
            first, best = (min(each, key=each.__getitem__) for each in (narrow, wide))
            regret = wide[first] / wide[best] - 1
            lines.append(
                f"| {backbone} | {kind} | {len(wide)} | {first:.1e} | {best:.1e} | {math.log2(best / first):+.0f} | "
                f"{regret:.1%} | {uncertainty(rows, backbone, kind, first, best)} |"
            )
    return "\n".join(lines) + "\n"


def draw(rows: list[Row], file: Path) -> None:
    """Loss against learning rate, one line a width, standard beside sp-full-align."""
    from matplotlib.figure import Figure

    there = [name for name in BACKBONES if curve(rows, name, "standard", WIDE)]
    figure = Figure(figsize=(7, 2.1 * len(there) + 0.4), layout="constrained")
    panels = figure.subplots(len(there), len(KINDS), sharex=True, sharey="row", squeeze=False)
    for line, backbone in enumerate(there):
        for column, kind in enumerate(KINDS):
            axes = panels[line][column]
            for width, color in ((NARROW, "#0072b2"), (BETWEEN, "#009e73"), (WIDE, "#d55e00")):
                points = {lr: loss for lr, loss in curve(rows, backbone, kind, width).items() if math.isfinite(loss)}
                if not points:
                    continue
                axes.plot(points.keys(), points.values(), "o-", markersize=3, color=color, label=f"width {width}")
                best = min(points, key=points.__getitem__)
                axes.plot(best, points[best], "o", markersize=8, fillstyle="none", color=color)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.grid(alpha=0.3)
            if line == 0:
                axes.set_title(kind)
            if column == 0:
                axes.set_ylabel(f"{backbone}\nl2")
            if line == len(there) - 1:
                axes.set_xlabel("learning rate")
    panels[0][0].legend(fontsize="small")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
