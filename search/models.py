"""One model at a time: train a setting by itself, take a trained model out of a study, tokenize."""

from __future__ import annotations

import shlex
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import TrialState

from search import fitting, output, progress, ranks, records, standing, trainer, yaml12
from search.catalog import trial_of
from search.errors import OutputError, StudyError, UserError, VqsearchError, writing
from search.space import Space
from vqvae import conversion
from vqvae.config import ConfigError, TrainConfig, VqvaeError
from vqvae.presets import preset
from vqvae.trainers import RECORD

if TYPE_CHECKING:
    from vqvae.data import Decoding
    from vqvae.train import Progress


def config_of(study: optuna.Study, space: Space, number: int) -> TrainConfig:
    """The config of a study's trial.

    Raises:
        StudyError: no such trial, or one that has no parameters yet.
    """
    trial = trial_of(study, number)
    if not trial.params:
        raise StudyError(f"{study.study_name}: trial {number} is waiting and has no parameters yet")
    return space.config(trial.params)


def read_config(source: str, changes: Mapping[str, Any]) -> TrainConfig:
    """A config from a YAML or JSON file, or one of the article's: ``preset:mamba``.

    Args:
        source: the file, or ``preset:NAME``.
        changes: values by dotted field, set before anything is checked.

    Raises:
        UserError: no such file or preset, or fields that do not hold, with file and line.
    """
    kind, _, name = source.partition(":")
    if kind == "preset":
        return conversion.replace(preset(name), changes)
    try:
        text = Path(source).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{source}: no such file; expected a config (YAML or JSON) or preset:NAME") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: can't be read: {error}") from None
    document = yaml12.parse(text, source)
    if not isinstance(document.value, dict):
        raise UserError(f"{source}: a config is a mapping of fields")
    try:
        config: TrainConfig = conversion.from_dict(conversion.merged(document.value, conversion.nest(changes)))
    except ConfigError as error:
        raise document.error(error.key.split("."), error.problem) from None
    return config


def train(
    config: TrainConfig,
    target: Path,
    say: Callable[[str], None] = lambda _: None,
    show: Callable[[Progress], None] = lambda _: None,
    decoding: Callable[[Decoding], None] = lambda _: None,
    processes: int = 1,
) -> int:
    """Train one model; its last checkpoint, and at the end the exported model, lie in `target`.

    Args:
        config: what to train.
        target: a new folder, or that of the same run, which then goes on.
        say: takes lines: where the run goes on from, what its pictures are and which were left out.
        show: takes each report.
        decoding: told how far the pictures are, before the first report.
        processes: how many share each batch, on CUDA each on a GPU of its own.

    Returns:
        0, or the number of the signal that stopped it; a second call goes on.

    Raises:
        UserError: weights that the run reads are missing.
        OutputError: `target` can't be written.
        SearchError: one of several processes died.
        VqvaeError: what `vqvae.train.train` raises.
    """
    _check(config, processes)
    caught: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    with _made(target):
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            tell = (lambda: bool(caught), say, show, decoding)
            if processes == 1:
                stopped = fitting.fit(config, target, *tell)
            else:
                stopped = ranks.fit(config, target, processes, *tell)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return caught[0] if stopped else 0


def outcome(target: Path, stopped: int) -> list[str]:
    """What a run came to, and what to do next, in lines.

    Args:
        target: its folder.
        stopped: what `train` returned.
    """
    if stopped:
        return [f"stopped; the same command goes on from {fitting.latest(target)}"]
    model = shlex.quote(str(target / "model"))
    return [
        f"the model is in {target / 'model'}",
        f"look at it:   {target / 'reconstructions.png'}, and worst.png beside it",
        f"reconstruct:  vqsearch reconstruct {model} PICTURE --to DIR",
        f"tokenize:     vqsearch tokenize {model} FOLDER --to tokens.npz",
    ]


def require_gpus(config: TrainConfig, count: int) -> None:
    """Refuses more GPUs than this machine has.

    Raises:
        UserError: fewer GPUs, or a config that asks for the CPU.
    """
    import torch

    there = torch.cuda.device_count()
    if config.device == "cpu":
        raise UserError(f"--gpus: can't be given where device is cpu, but got {count}")
    if count > there:
        found = "no GPU" if not there else f"{there} {'GPU' if there == 1 else 'GPUs'}"
        raise UserError(f"--gpus: must be at most what torch finds here, {found}, but got {count}")


def _check(config: TrainConfig, processes: int) -> None:
    """Refuses before any picture is decoded what would be refused after it."""
    from vqvae import train as training
    from vqvae import weights

    try:
        training.check(config, processes)
    except weights.WeightsError as error:
        flags = " ".join(f"--set {each}" for each in error.without)
        raise UserError(f"{error.problem}; or do without: {flags}") from None


@contextmanager
def _made(target: Path) -> Iterator[None]:
    """The folder of a run, which is gone again if nothing came to lie in it."""
    folders = (target / "checkpoints", target, *target.parents)
    with writing(target):
        new = [folder for folder in folders if not folder.exists()]
        folders[0].mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for folder in new:
            with suppress(OSError):
                folder.rmdir()


def export(study: optuna.Study, number: int | None, target: Path) -> str:
    """Write a trial's model to a folder: weights, config, and a sheet of reconstructions.

    Args:
        study: where the trial is.
        number: which one; None for the best.
        target: a folder that is new or empty.

    Returns:
        A line that says what was written.

    Raises:
        StudyError: no such trial, or one without a checkpoint.
        OutputError: its checkpoint can't be reached, or `target` can't be written.
    """
    if number is not None:
        return _export(study, number, target)
    best = _best(study)
    try:
        return _export(study, best, target)
    except (VqsearchError, VqvaeError, OSError):
        better = _best(study)
        if better == best:
            raise
        return _export(study, better, target)  # It finished while the other's checkpoint was read, which then went.


def _best(study: optuna.Study) -> int:
    ranked = standing.ranking_of_models(study)
    if not ranked:
        raise StudyError(f"{study.study_name}: no trial is complete yet; --trial N takes another one")
    return ranked[0].number


def _export(study: optuna.Study, number: int, target: Path) -> str:
    trial, name = trial_of(study, number), study.study_name
    original, record = records.copied(trial), records.checkpoint(trial)
    if original is not None:
        raise StudyError(
            f"{name}: trial {number} is a copy of trial {original.number} of {original.study}, whose checkpoint is in "
            f"{original.output}: vqsearch export --study {original.study} --trial {original.number} --to DIR"
        )
    if record is None:
        raise StudyError(f"{name}: trial {number} is {trial.state.name} and has no checkpoint")
    with writing(target):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise OutputError(f"{target}: expected a folder that is new or empty")
    from vqvae import checkpoint

    root = records.output(study)
    if output.has_gone(root, record.folder):
        again = f"; train it again: vqsearch train --study {name} --trial {number} --to DIR"
        raise StudyError(
            f"{name}: trial {number} is {trial.state.name} and its checkpoint has gone, as the space file's keep says"
            f"{'' if (records.space(study) or {}).get('trainer') else again}"
        )
    with output.fetched(root, record.folder) as folder:
        if (folder / RECORD).is_file():  # only its trainer knows what a model is
            with writing(target):
                shutil.copytree(folder, target, dirs_exist_ok=True)
        else:
            metrics = {name: value for name, value in record.metrics.items() if name.startswith("val/")}
            checkpoint.save_model(checkpoint.load(folder), checkpoint.load_config(folder), target, metrics)
            with writing(target):
                for picture in folder.glob("*.png"):
                    shutil.copy(picture, target / picture.name)
    partly = "" if trial.state == TrialState.COMPLETE else f", which is {trial.state.name}, as it was"
    return f"trial {number}{partly} at step {record.step} -> {target}"


def tokenize(
    model: Path,
    folder: Path,
    target: Path,
    *,
    batch_size: int,
    device: str = "auto",
    split: str = "",
    tell: Callable[[int, int], None] = lambda _done, _total: None,
) -> list[str]:
    """Encode every picture below a folder into a file of indices, see `vqvae.tokens.write`.

    Args:
        model: an exported model, or a checkpoint.
        folder: of pictures.
        target: the file, which does not exist yet.
        batch_size: pictures at once.
        device: auto (cuda where there is one, else cpu), cpu or cuda.
        split: train, validation or test: only the pictures that the model's config puts there.
        tell: called with the number of pictures done, and of all.

    Returns:
        Lines that say what was written, and what was left out.

    Raises:
        VqvaeError: no model or no pictures there, or `target` can't be written.
        UserError: no such device, or too little memory on it.
    """
    import torch

    from vqvae import checkpoint, tokens

    trainer.require_our_model(model, "vqsearch tokenize encodes by")
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise UserError("--device: must be cpu or auto, since torch finds no CUDA device, but got 'cuda'")
    place = "cuda" if there and device != "cpu" else "cpu"
    config = checkpoint.load_config(model)
    try:
        network = checkpoint.load(model, place)
        written = tokens.write(network, config, folder, target, batch_size=batch_size, split=split, tell=tell)
    except torch.OutOfMemoryError:
        raise UserError(f"--batch: {batch_size} pictures at once take more memory than {place} has") from None
    count, rows, columns = written.tokens
    codes = network.quantizer.codebook_size
    what = f"{count} {'picture' if count == 1 else 'pictures'}, {rows} x {columns} tokens of {codes} codes each"
    return [*progress.left_out(written.left_out), f"{what}, {written.kind} -> {target}"]
