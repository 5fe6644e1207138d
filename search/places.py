"""What the doctor looks at where files lie: weights, images and disks."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from search import finalists, mounts, output
from search.checkup import Finding, Status, refused
from search.errors import OutputError

if TYPE_CHECKING:
    from search.space import Space
    from vqvae.config import DataConfig
    from vqvae.sources import Source

ROOM = 10e9
"""Free bytes below which a disk is called small."""

FULL = 100e6
"""Free bytes below which a disk is called full."""

RAY_STOPS = 0.95
"""Part of its disk in use above which Ray starts nothing more."""

CHECKPOINT = 16
"""Bytes of a checkpoint for each parameter: it, its moving average and AdamW's two moments, in float32."""


def weights(spaces: Sequence[Space]) -> Iterator[Finding]:
    """The files of weights that trials read; without a space, those that the seed's settings read.

    Args:
        spaces: what is to be searched.
    """
    from search import launch
    from vqvae import weights as files
    from vqvae.config import TrainConfig

    try:
        for space in spaces:
            launch.check_weights(space)
        if not spaces:
            files.require(TrainConfig())
    except files.WeightsError as error:
        without = "".join(f" --set train.{setting}" for setting in error.without)
        message = error.problem + (f"; or do without:{without}" if without else "")
        yield refused("weights", message, "error" if spaces else "warning")
    else:
        said = "all that these trials read" if spaces else f"those of LPIPS are in {files.hub()}"
        yield Finding(name="weights", status="ok", said=said)


def output_root(root: str, needed: float = 0.0) -> Iterator[Finding]:
    """Whether the output root can be written, and what room it has.

    Args:
        root: a folder or the URL of a bucket.
        needed: bytes of the checkpoints that it will hold.
    """
    try:
        with output.reached(root, create=True):
            if "://" in root:
                said = f"{output.shown(root)} can be written"
                yield Finding(name="output", status="ok", said=said)
                return
            place = Path(output.absolute(root))
            yield room("output", place, os.statvfs(place), mounts.kind(place), needed, "--output with a larger disk")
    except OutputError as error:
        found = refused("output", str(error))
        yield Finding(name="output", status="error", said=found.said, mend=found.mend or "--output with another folder")


def room(name: str, place: Path, usage: os.statvfs_result, kind: str, needed: float, mend: str) -> Finding:
    """What room a disk has.

    Args:
        name: of the finding.
        place: what lies on it.
        usage: of the disk.
        kind: of its file system.
        needed: bytes.
        mend: what to do if it is too small.
    """
    free, total = usage.f_bavail * usage.f_frsize, usage.f_blocks * usage.f_frsize
    said = f"{place}" + (f" on {kind}" if kind else "") + f", {_gb(free)} of {_gb(total)} are free"
    if usage.f_files and not usage.f_favail:
        return Finding(name=name, status="error", said=f"{said}, but no more files (inodes)", mend=mend)
    status: Status = "error" if free < FULL else "warning" if free < max(ROOM, needed) else "ok"
    if needed:
        said += f"; about {_gb(needed)} will be needed"
    return Finding(name=name, status=status, said=said, mend="" if status == "ok" else mend)


def checkpoints(space: Space) -> float:
    """Bytes of the checkpoints that a search keeps at once, by the largest of the models at the ends of its ranges."""
    from search import driver
    from vqvae.config import ConfigError

    measured, sizes = driver.measure(space), [0.0]
    for end in (0, -1):
        labels = {p.name: p.labels[end] if p.kind == "choice" else (p.low, p.high)[end] for p in space.parameters}
        with contextlib.suppress(ConfigError):
            sizes.append(measured(space.wanted(labels)).get("parameters", 0.0))
    follow = finalists.wanted(space)
    judged = 0 if follow is None else follow.top * len(follow.seeds)
    return CHECKPOINT * max(sizes) * (space.keep.best + judged + (space.parallel or 1))


def temporary(usage: os.statvfs_result | None = None) -> Iterator[Finding]:
    """The disk on which Ray keeps its sessions.

    Args:
        usage: of that disk.
    """
    place = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    usage = os.statvfs(place) if usage is None else usage
    used = 1 - usage.f_bavail / max(1, usage.f_blocks)
    said = f"{place}, where Ray keeps its sessions, is {100 * used:.0f} % full"
    if used > RAY_STOPS:
        mend = "remove what nobody needs there, or $RAY_TMPDIR on another disk"
        yield Finding(name="temporary", status="warning", said=f"{said}; above 95 % it starts nothing more", mend=mend)
    else:
        yield Finding(name="temporary", status="ok", said=said)


def images(config: DataConfig) -> Iterator[Finding]:
    """Whether there are pictures that can be read, and room for the cache of them; only the first few are decoded."""
    from vqvae import sources

    total = 0
    if config.source == "photographs":
        yield Finding(name="images", status="ok", said="the bundled photographs")
    else:
        source = sources.find(config)
        total = source.total
        yield _pictures(source)
    place = existing(Path(config.cache or "~/.cache/vqsearch").expanduser())
    if not os.access(place, os.W_OK, effective_ids=True):
        mend = "--set train.data.cache=FOLDER"
        yield Finding(name="cache", status="error", said=f"{place} can't be written", mend=mend)
        return
    needed = float(total * config.resolution**2 * 3)
    mend = "--set train.data.cache=FOLDER on a disk of this machine with room"
    found = room("cache", place, os.statvfs(place), mounts.kind(place), needed, mend)
    if found.status == "ok" and mounts.shared(place):
        said = f"{found.said}; every batch is read over the network"
        found = Finding(name="cache", status="warning", said=said, mend=mend)
    yield found


def _pictures(source: Source, tried: int = 8) -> Finding:
    from vqvae import pictures

    broken = []
    for name, content in itertools.islice(source.pictures(), tried):
        try:
            pictures.read(content if isinstance(content, Path) else io.BytesIO(content), side=64)
        except pictures.UNREADABLE as error:
            broken.append(f"{name} ({type(error).__name__})")
    pictures_in = f"{source.total:,} picture{'s' * (source.total != 1)} in "
    said = (pictures_in if source.total else "") + source.place
    tries = min(tried, source.total or tried)
    if not broken:
        return Finding(name="images", status="ok", said=f"{said}; the first {tries} can be read")
    said += f"; {len(broken)} of the first {tries} can't be read: {broken[0]}"
    status: Status = "error" if len(broken) == tries else "warning"
    return Finding(name="images", status=status, said=said, mend="pictures that a viewer opens; the rest is skipped")


def existing(path: Path) -> Path:
    """The path, or the first of the folders it lies in that is there."""
    return next(each for each in (path, *path.parents) if each.exists())


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f} GB"
