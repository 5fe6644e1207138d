"""What a comparison will cost on GPUs that are not here, beside what `vqsearch validate --cost` finds on this machine.

Of each arm the smallest and the largest model are probed. Hours of other GPUs follow from the floating-point operations
of a training step (matrix products, convolutions, attention; forwards and backwards, LPIPS too) over what such a GPU is
assumed to reach of its dense bfloat16 peak: an estimate, of which the table gives a range.

python benchmarks/probe.py spaces/fair.yaml
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from search import comparison, corners, equality
from search.cost import figure, load_of
from search.operations import operations
from search.probe import speed_of

PEAKS = {"A6000": 154.8e12, "H100": 989.4e12}
"""Dense bfloat16 operations a second as NVIDIA publishes them, of an RTX A6000 and an H100 SXM."""

REACHED, LEAST, MOST = 0.25, 0.15, 0.35
"""Part of the peak that training is assumed to reach, and the range that is told beside it. Widths of a few hundred
channels, norms, activations and the 7 x 7 depthwise convolution keep it low."""


@dataclass(frozen=True, kw_only=True)
class Corner:
    """The smallest or the largest model of an arm."""

    parameters: int
    flops: float
    """Of a training step / images."""
    images_per_s: float
    """In training, on this device."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def main() -> None:
    """Probe, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="a comparison file")
    parser.add_argument("--set", action="append", default=[], help="FIELD=VALUE, as of vqsearch compare")
    parser.add_argument("--images", type=int, default=0, help="of a timed step; default: 32 on CUDA, else 2")
    given = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = comparison.load(given.file, given.set)
    arms = equality.prove(loaded).arms
    images = given.images or (32 if device.type == "cuda" else 2)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "a core of this CPU"
    probed: dict[str, list[Corner]] = {}
    for arm, each in arms.items():
        probed[arm] = []
        for corner in corners.find(each).within:
            probed[arm].append(
                Corner(
                    parameters=corner.parameters,
                    flops=operations(corner.config),
                    images_per_s=speed_of(corner.config, device, images).images_per_s,
                )
            )
    loads = {arm: load_of(each) for arm, each in arms.items()}
    print(f"A step for {images} images on {name}; torch {torch.__version__}.\n")
    print(
        table(
            ["arm", "parameters", "GFLOP an image", f"images/s, {name}", f"hours a trial, {name}"]
            + [f"hours a trial, {gpu}" for gpu in PEAKS],
            [
                [
                    arm,
                    f"{corner.parameters / 1e6:.3g}M",
                    figure(corner.flops / 1e9),
                    figure(corner.images_per_s),
                    figure(loads[arm].one / corner.images_per_s / 3600),
                    *(figure(loads[arm].one * corner.flops / (peak * REACHED) / 3600) for peak in PEAKS.values()),
                ]
                for arm, both in probed.items()
                for corner in both
            ],
        )
    )
    print(
        f"\nThe whole comparison in hours, those of GPUs at {REACHED:.0%} of their peak ({MOST:.0%} to {LEAST:.0%}).\n"
    )

    def here(arm: str) -> float:
        return statistics.mean(1 / corner.images_per_s for corner in probed[arm]) / 3600

    def on(arm: str, peak: float) -> float:
        return statistics.mean(corner.flops for corner in probed[arm]) / peak / 3600

    parts = {
        "search, no trial stopped": {arm: float(load.search) for arm, load in loads.items()},
        "search under asha": {arm: load.search * load.share for arm, load in loads.items()},
        "finalists": {arm: float(load.finalists) for arm, load in loads.items()},
    }
    parts["all, under asha"] = {arm: parts["search under asha"][arm] + parts["finalists"][arm] for arm in loads}
    parts["all, no trial stopped"] = {
        arm: parts["search, no trial stopped"][arm] + parts["finalists"][arm] for arm in loads
    }
    rows = []
    for what, seen in parts.items():
        row = [what, figure(sum(count * here(arm) for arm, count in seen.items()))]
        for peak in PEAKS.values():
            least = sum(count * on(arm, peak) for arm, count in seen.items())
            row.append(f"{figure(least / REACHED)} ({figure(least / MOST)} to {figure(least / LEAST)})")
        rows.append(row)
    print(table(["", name, *PEAKS], rows))
    first = next(iter(loads.values()))
    print(f"\nUnder asha {first.share:.0%} of the steps of a search are expected to be left.")


if __name__ == "__main__":
    main()
