"""A study of thousands of trials, made up in a minute: what people look at must be quick with many of them.

Its trials have settings, curves, metrics, limits, reasons, notes and pictures as a search writes them, in all states.
Values follow a made-up law of the settings with noise; pictures are photographs, blurred the more the worse the trial.

python benchmarks/many.py --trials 2000 --storage sqlite:////tmp/many.db --output /tmp/many
"""

from __future__ import annotations

import argparse
import math
import os
import random
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import skimage.data
from optuna.storages import BaseStorage
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from PIL import Image, ImageFilter

from search import attachments, output, parameters, records, space, study
from search.records import Picture
from search.space import Space
from search.storage import open_storage

STUDY = "many"
SPACE = """\
study: many
objective: {{metric: val/lpips_alex, direction: minimize}}
budget: {{trials: {trials}, steps: 30000}}
resources: {{gpus: 1, cpus: 8}}
train: {{model: {{backbone: attention, width: 256}}}}
search:
  optimizer.lr: {{float: [5.0e-5, 2.0e-3], log: true}}
  optimizer.beta2: {{choice: [0.95, 0.99, 0.999]}}
  quantizer.beta: {{float: [0.05, 2.0], log: true}}
  quantizer.codebook_size: {{choice: [1024, 4096, 16384]}}
  quantizer.code_dim: {{choice: [4, 8, 16, 32]}}
  quantizer.update: {{choice: [gradient, ema]}}
  quantizer.ema_decay: {{float: [0.99, 0.999], when: {{quantizer.update: ema}}}}
  loss.perceptual: {{float: [0.03, 3.0], log: true}}
  model.depth: {{int: [2, 14]}}
  model.overlap: {{choice: [0.0, 0.5, 1.0]}}
constraints: {{parameters: {{max: 40.0e6}}, bits_per_image: {{max: 14336}}}}
"""
LEVELS = 8
"""Qualities of pictures; each is one file with a name for every trial that has it."""


def make(storage: BaseStorage, root: str | Path, trials: int, seed: int = 0, text: str = "") -> optuna.Study:
    """Make the study.

    Args:
        storage: where it is to be; it must not hold a study of this name.
        root: output root, a folder.
        trials: how many, the last three of which have not ended.
        seed: of settings and noise.
        text: of the space file, with what SPACE searches; SPACE, if empty.
    """
    root = Path(root).resolve()
    space_file = root / f"{STUDY}.yaml"
    root.mkdir(parents=True, exist_ok=True)
    space_file.write_text(text or SPACE.format(trials=trials))
    opened = study.create(storage, space.load(space_file), str(root), 4)
    opened.close()
    made = _Maker(storage, opened.study._study_id, opened.space, root, random.Random(seed))
    for number in range(trials):
        made.add(
            number, unfinished=(TrialState.RUNNING, TrialState.WAITING)[number % 2] if number > trials - 4 else None
        )
    records.set_sizes(opened.study, {"train": 50_000, "validation": 2_000, "test": 2_000})
    records.set_hours(opened.study, trials * 0.4)
    attachments.note_study(opened.study, opened.space)
    return opened.study


@dataclass(kw_only=False)
class _Maker:
    storage: BaseStorage
    study_id: int
    space: Space
    root: Path
    chance: random.Random
    values: dict[int, list[float]] = field(default_factory=dict)
    now: datetime = field(default_factory=lambda: datetime.now() - timedelta(days=30))
    sheets: list[dict[str, Path]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sheets = [_sheets(self.root, level) for level in range(LEVELS)]

    def add(self, number: int, unfinished: TrialState | None) -> None:
        """One trial, as if it had been searched."""
        chance, budget = self.chance, self.space.budget
        sampler = optuna.samplers.RandomSampler(seed=chance.getrandbits(31))
        probe = optuna.create_study(sampler=sampler).ask()
        drawn = parameters.suggest(self.space.parameters, probe)
        ordered = {each.name: each for each in self.space.parameters if each.ordered}
        labels = {k: parameters.snap(ordered[k], v) if k in ordered else v for k, v in drawn.items()}
        parameters.suggest(self.space.parameters, fixed := FixedTrial(labels))  # type: ignore[arg-type]
        size = labels["model.depth"] * 2 * 12 * 256**2 + 4e6
        attributes: dict[str, Any] = {}
        constraints: dict[str, float] = {}
        state, reason, curve = TrialState.COMPLETE, "", {}
        if size > 40e6:
            state, reason = TrialState.PRUNED, f"parameters is {size:,.6g}: outside constraints"
            constraints, attributes = {"parameters": size / 40e6 - 1}, {records.INVALID: True}
        elif chance.random() < 0.02:
            state = TrialState.FAIL
            reason = (
                'Traceback (most recent call last):\n  File "train.py", line 1\nRuntimeError: CUDA error: unspecified'
            )
        elif chance.random() < 0.03:
            state, constraints = TrialState.PRUNED, {"diverged": 1.0}
            reason = f"train/loss is nan after step 411 of {budget.steps}, at optimizer.lr {labels['optimizer.lr']:g}"
        else:
            curve, state, reason = self._curve(labels)
        state, reason = (state, reason) if unfinished is None else (unfinished, "")
        seconds = round(1500 * (max(curve, default=500) / budget.steps) * chance.uniform(0.8, 1.2), 2)
        if curve:
            attributes |= self._measured(number, labels, size, curve) | {records.SECONDS: seconds}
        if reason:
            attributes[records.REASON] = reason
        pictures = [Picture(**each) for each in attributes.get(records.PICTURES, [])]
        trial = optuna.trial.create_trial(
            state=state,
            value=curve[budget.steps] if state == TrialState.COMPLETE else None,
            params=labels,
            distributions=fixed.distributions,
            intermediate_values=curve,
            user_attrs=attributes,
            system_attrs=attachments.described(self.study_id, number, pictures),
            constraints=constraints,
        )
        trial.datetime_start = self.now if state != TrialState.WAITING else None
        self.now += timedelta(seconds=seconds / 4)
        trial.datetime_complete = self.now if state.is_finished() else None
        self._note(trial, self.storage.create_new_trial(self.study_id, trial), state)

    def _curve(self, labels: dict[str, Any]) -> tuple[dict[int, float], TrialState, str]:
        """Values at the rungs and at the end, as far as ASHA lets the trial go."""
        worth = (
            0.10
            + 0.03 * abs(math.log(labels["optimizer.lr"] / 4e-4))
            + 0.01 * abs(math.log(labels["quantizer.beta"] / 0.3))
            + 0.15 / labels["model.depth"]
            + 0.05 * (14 - math.log2(labels["quantizer.codebook_size"])) / 4
            + 0.01 * abs(math.log(labels["loss.perceptual"] / 0.4))
        )
        curve, metric = {}, self.space.objective.metric
        for step in (*self.space.rungs, self.space.budget.steps):
            value = worth * (1 + 0.8 * (1 - step / self.space.budget.steps) ** 4) * self.chance.uniform(0.95, 1.05)
            curve[step] = round(value, 6)
            before = self.values.setdefault(step, [])
            before.append(value)
            if step < self.space.budget.steps and sorted(before)[max(len(before) // 3, 1) - 1] < value:
                return curve, TrialState.PRUNED, f"{metric} {value:.5g} is not among the best there"
        return curve, TrialState.COMPLETE, ""

    def _measured(self, number: int, labels: dict[str, Any], size: float, curve: dict[int, float]) -> dict[str, Any]:
        value, last = curve[max(curve)], max(curve)
        usage = self.chance.uniform(0.2, 1.0)
        bits = math.log2(labels["quantizer.codebook_size"]) * 1024 * usage**0.2
        metrics = {
            "val/lpips_alex": value,
            "val/psnr": 30 - 30 * value + self.chance.gauss(0, 0.3),
            "val/ssim": 0.95 - value / 2,
            "val/l1": value / 5,
            "val/codebook_usage": usage,
            "val/perplexity": labels["quantizer.codebook_size"] * usage**1.5,
            "val/entropy_bits_per_image": bits,
            "parameters": size,
            "images_per_s": 4e9 / size * self.chance.uniform(0.9, 1.1),
            "encode_images_per_s": 2e10 / size,
            "decode_images_per_s": 1.8e10 / size,
            "peak_memory_gib": 4 + size / 2e6,
        }
        level = min(int((value - 0.1) / 0.4 * LEVELS), LEVELS - 1)
        pictures = []
        for step in curve:
            folder = output.folder_of(STUDY, number, step)
            (self.root / folder).mkdir(parents=True)
            for name, sheet in self.sheets[max(level, 0)].items():
                os.link(sheet, self.root / folder / f"{name}.png")
                pictures.append({"step": step, "name": name, "folder": folder})
        checkpoint = {"step": last, "folder": output.folder_of(STUDY, number, last), "metrics": metrics}
        decided = {f"decision at {step}": "continue" for step in self.space.rungs if step < last}
        return metrics | decided | {
            records.CHECKPOINT: checkpoint,
            records.PICTURES: pictures,
            records.DEVICE: "NVIDIA H200",
        }  # fmt: skip

    def _note(self, trial: FrozenTrial, trial_id: int, state: TrialState) -> None:
        """As optuna_dashboard.save_note, which reads all notes for each."""
        note = attachments.trial_note(self.space, trial, state if state.is_finished() else None) + attachments.RULE
        for start in range(0, len(note), 2000):
            key = f"dashboard:{trial_id}:note_str:{start // 2000}"
            self.storage.set_study_system_attr(self.study_id, key, note[start : start + 2000])
        self.storage.set_study_system_attr(self.study_id, f"dashboard:{trial_id}:note_ver", 1)


def _sheets(root: Path, level: int) -> dict[str, Path]:
    """Two sheets, of 16 photographs each in rows of 8 above their reconstructions, of 128 px."""
    side, made = 128, {}
    for name, photograph in (("reconstructions", skimage.data.astronaut()), ("worst", skimage.data.coffee())):
        picture = Image.fromarray(photograph)
        sheet = Image.new("RGB", (8 * side, 4 * side))
        for place in range(16):
            left, top = place * 47 % (picture.width - side), place * 31 % (picture.height - side)
            crop = picture.crop((left, top, left + side, top + side))
            column, row = place % 8 * side, place // 8 * 2 * side
            sheet.paste(crop, (column, row))
            sheet.paste(crop.filter(ImageFilter.GaussianBlur(level / 2)), (column, row + side))
        made[name] = root / f"{name}-{level}.png"
        sheet.save(made[name])
    return made


def main() -> None:
    """Make the study that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--storage", required=True, metavar="URL")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    began = time.monotonic()
    made = make(open_storage(chosen.storage), chosen.output, chosen.trials, chosen.seed)
    states = [trial.state.name for trial in made.get_trials(deepcopy=False)]
    counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
    print(f"{STUDY}: {len(states)} trials ({counts}) in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
