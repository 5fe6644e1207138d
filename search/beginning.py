"""A space file to begin with: every value chosen from the pictures and the machine that are here, and why beside it."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from search.survey import Survey
from search.text import one_line
from vqvae import weights
from vqvae.weights import TRUNKS, WeightsError

PATCH = 8
"""Pixels that a token covers along each side."""

COLUMN = 54
"""At which the comments behind values begin."""

ROOMY_GIB = 7.5
"""Memory of a GPU from which 256-pixel images are worth their micro-batches."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What this machine trains on."""

    gpus: int
    gpu: str
    """Model of the smallest of them."""
    memory_gib: float
    """Of that one."""
    cores: int


def hardware() -> Hardware:
    """What is here."""
    cards = [torch.cuda.get_device_properties(place) for place in range(torch.cuda.device_count())]
    least = min(cards, key=lambda card: card.total_memory, default=None)
    return Hardware(
        gpus=len(cards),
        gpu=least.name if least else "",
        memory_gib=least.total_memory / 2**30 if least else 0.0,
        cores=len(os.sched_getaffinity(0)),
    )


def has_lpips() -> bool:
    """Whether the files of weights lie where LPIPS looks for them."""
    try:
        for trunk in TRUNKS.values():
            weights.trunk_file(trunk)
    except WeightsError:
        return False
    return True


def write(seen: Survey, machine: Hardware, lpips: bool) -> str:
    """The text of a space file.

    Args:
        seen: the pictures.
        machine: what trains on them.
        lpips: whether its weights are there.
    """
    gpu = machine.gpus > 0
    most = (256 if machine.memory_gib >= ROOMY_GIB else 128) if gpu else 64
    resolution = max(2 * PATCH, min(most, 2 ** int(math.log2(max(seen.short(0.5), 1)))))
    lpips = lpips and resolution >= 64  # its network halves an image five times
    below = sum(side < resolution for side in seen.short_sides) / len(seen.short_sides)
    batch = min(128 if gpu else 16, 2 ** int(math.log2(max(seen.total // 2, 1))))
    steps, warmup = (30000, 1024) if gpu else (600, 32)
    validation, test = (_fraction(wanted, seen.total) for wanted in (512, 1024))
    tokens = (resolution // PATCH) ** 2
    parallel = machine.gpus or min(machine.cores, 4)
    kept = 1 / seen.aspect(0.5)
    grouped, why = _grouping(seen)
    where = f"{machine.gpus} x {machine.gpu}, {machine.memory_gib:.0f} GiB" if gpu else f"{machine.cores} CPU cores"
    model = (
        "{backbone: attention, width: 256}"
        if gpu
        else "{backbone: attention, width: 64, head_size: 32}   # small, since there is no GPU here"
    )
    bound = {True: "what this machine bears", False: "the largest power of two below the median short side"}
    loss = "" if lpips else "  loss: {perceptual: 0.0}                   # LPIPS of training needs its weights too\n"
    judged = "{images: 512}" if lpips else "{images: 512, lpips: false}"
    objective, direction = ("val/lpips_alex", "minimize") if lpips else ("val/psnr", "maximize")
    because = (
        "the weights of LPIPS are here"
        if lpips
        else "the weights of LPIPS are not here (vqsearch doctor says where they go); with them it is better\n"
        "# {metric: val/lpips_alex, direction: minimize}, without loss: and lpips: false below"
    )
    rates, codes, depth = (
        ("[5.0e-5, 2.0e-3]", "[1024, 4096, 16384]", "[2, 12]")
        if gpu
        else ("[5.0e-4, 5.0e-3]", "[256, 512, 1024]", "[1, 2]")
    )
    bits = tokens * (14 if gpu else 10)
    return _aligned(f"""\
# Written by vqsearch init, to be changed. Look at it: vqsearch validate --cost FILE; begin: vqsearch launch FILE
# Pictures: {seen.total:,} files in {_several(len(seen.folders), "folder")}. Of {seen.looked:,} that were looked at
#   {seen.broken:,} can't be read, {seen.gray:,} are gray, {seen.alpha:,} have transparency (laid over white),
#   {seen.turned:,} are turned by their EXIF tag (trained on upright);
#   short sides are {seen.short(0.1):,} to {seen.short(0.9):,} px (10 % and 90 %), their median {seen.short(0.5):,} px;
#   the long side is {seen.aspect(0.5):.2f} times the short one in the median, {seen.aspect(0.9):.2f} times in 90 %.
#   Of {seen.decoded:,} that were compared {seen.near_duplicates:,} are near-duplicates of another one.
# Machine: {one_line(where)}.
study: {_name(seen.place)}
# {because}
objective: {{metric: {objective}, direction: {direction}}}
budget: {{trials: {32 if gpu else 12}, steps: {steps}}}
pruner: {{kind: asha, rungs: 2, reduction_factor: 3}}   # compared after {steps // 9:,} and {steps // 9 * 3:,} steps
resources: {{gpus: {int(gpu)}, cpus: {max(1, min(8, machine.cores // machine.gpus)) if gpu else 1}}}   # of one trial
parallel: {parallel}                                 # {"a trial on each GPU" if gpu else "of the cores here"}

train:
  model: {model}
{loss}  optimizer: {{warmup_steps: {warmup}}}             # over before half of the first rung
  data:
    source: folder
    path: {quoted(seen.place)}
    resolution: {resolution}                         # {bound[resolution == most]}
    fit: short-side                         # the middle square: {100 * kept:.0f} % of the median picture
    small: {_small(below)}
    group_by: {grouped}               # {why}
    validation_fraction: {validation:g}             # chooses settings: about {round(validation * seen.total):,}
    test_fraction: {test:g}                   # only finalists see it: about {round(test * seen.total):,}
  evaluation: {judged}
  batch_size: {batch}                             # memory is no matter: a step is split where it runs out

search:
  optimizer.lr: {{float: {rates}, log: true}}
  quantizer.beta: {{float: [0.05, 2.0], log: true}}
  quantizer.codebook_size: {{choice: {codes}}}
  quantizer.code_dim: {{choice: [4, 8, 16]}}
  model.depth: {{int: {depth}}}                 # blocks on each side

# {tokens:,} tokens of at most {bits // tokens} bits; what is larger is refused before it trains
constraints: {{parameters: {{max: {"4.0e+7" if gpu else "2.0e+6"}}}, bits_per_image: {{max: {bits}}}}}
""")


def _aligned(text: str) -> str:
    """The same with the comments behind values in one column; a path may hold what looks like one."""
    lines = []
    for line in text.splitlines():
        value, mark, comment = line.partition("  # ")
        inline = mark and value.strip() and not line.lstrip().startswith("path:")
        lines.append(f"{value.rstrip():<{COLUMN}} # {comment.lstrip()}" if inline else line)
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """A scalar of YAML in double quotes; what is not printable becomes an escape, so that any path stays one line."""

    def letter(each: str) -> str:
        if each in '"\\':
            return "\\" + each
        code = ord(each)
        return each if each.isprintable() else f"\\U{code:08x}" if code > 0xFFFF else f"\\u{code:04x}"

    return f'"{"".join(map(letter, text))}"'


def _name(place: str) -> str:
    """A study's name from that of a folder."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(place).name).strip("-._")
    return quoted(name or "pictures")


def _fraction(wanted: int, total: int) -> float:
    """Part of the pictures that holds as many as wanted, from 2 % to 10 %."""
    return float(f"{min(0.1, max(0.02, wanted / total)):.2g}")


def _small(below: float) -> str:
    if not below:
        return "upscale                          # no picture seen is smaller than that"
    how = "skip" if below <= 0.1 else "upscale"
    done = "left out" if how == "skip" else "enlarged, since leaving them out would cost too many"
    return f"{how}                          # {100 * below:.0f} % of the pictures are smaller: {done}"


def _grouping(seen: Survey) -> tuple[str, str]:
    """What stays together in one split, and why."""
    count, largest = len(seen.folders), max(seen.folders)
    if count >= 20 and seen.total / count >= 2 and largest <= min(100, seen.total / 20):
        return "folder", f"{count:,} small folders look like scenes or people, which no split should divide"
    return "near-duplicates", "so that no copy of a picture that trains is judged on"


def _several(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"
