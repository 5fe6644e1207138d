"""What benchmarks share: a search of seconds, the environment of its processes, storages, a dashboard, the result."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

LOAD = os.getloadavg()[0]
"""Processes that ran or waited in the minute before a benchmark began: what others did to its figures."""

PACKAGES = ("ray", "optuna", "torch", "torchvision", "vector-quantize-pytorch")
"""Whose versions a result names, of those that are installed: a GPU machine may have torch alone."""


def space(name: str, *, trials: int, steps: int, rest: str = "", train: str = "") -> str:
    """A space file, two trials at once.

    Args:
        name: of the study.
        trials: its budget.
        steps: optimizer steps of a trial.
        rest: more lines of the file.
        train: more lines of its section `train`, without their indent.
    """
    more = "".join(f"\n  {line}" for line in train.splitlines())
    return f"""\
study: {name}
objective: {{metric: val/psnr, direction: maximize}}
budget: {{trials: {trials}, steps: {steps}}}
resources: {{gpus: 0, cpus: 1}}
parallel: 2
{rest}
train:
  model: {{backbone: attention, width: 16, depth: 1, head_size: 16, patch: 16}}
  quantizer: {{code_dim: 4}}
  loss: {{perceptual: 0}}
  optimizer: {{warmup_steps: 2}}
  data: {{resolution: 64}}
  evaluation: {{lpips: false, images: 8}}
  batch_size: 4
  micro_batch: 4{more}
search:
  optimizer.lr: {{float: [5.0e-4, 5.0e-3], log: true}}
  quantizer.codebook_size: {{choice: [16, 64, 256]}}
"""


def environment(url: str, folder: Path) -> dict[str, str]:
    """Of a driver: Ray's sessions in a folder of ours; one thread, since sums depend on how many there are."""
    ours = {"VQSEARCH_STORAGE": url, "RAY_TMPDIR": str(folder), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **ours}


@contextlib.contextmanager
def database(folder: Path, kind: str) -> Iterator[str]:
    """URL of an empty storage."""
    if kind != "postgresql":
        yield f"{kind}:///{folder}/{kind}"
        return
    import pgserver

    place = tempfile.mkdtemp(prefix="pg")  # Its socket's path must be short.
    server = pgserver.get_server(place, cleanup_mode="delete")
    yield f"{server.get_uri()}&options=-csynchronous_commit%3Doff"  # the study is made up, not kept
    server.cleanup()
    shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def serving(url: str, study: str) -> Iterator[tuple[str, str]]:
    """`vqsearch dashboard`, in a process of its own: its address and the path of the study below it."""
    command = [sys.executable, "-m", "search", "dashboard", "--port", "0", "--study", study]
    environment = {**os.environ, "VQSEARCH_STORAGE": url}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        found = re.search(r"(http://[^/]+)/(\S+)", process.stdout.readline())
        assert found is not None
        yield found[1], found[2]
        process.terminate()  # a command in the background of a shell takes no SIGINT


def heading(title: str, command: str) -> str:
    """What, when, by which command, on which machine, with which versions."""
    cpus = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpus.read_text()) if cpus.exists() else None
    processor = model.group(1) if model else platform.machine()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name)))
    return (
        f"# {title}, {datetime.now(UTC):%Y-%m-%d}\n\n"
        f"`{command}` on {os.cpu_count()} cores ({processor}), {memory:.0f} GiB, {platform.system()}; load {LOAD:.1f} "
        f"before; Python {platform.python_version()}, {versions}.\n"
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def write(name: str, text: str) -> None:
    """Keep a result under its date."""
    place = Path(__file__).parent / "results" / f"{datetime.now(UTC):%Y-%m-%d}-{name}.md"
    place.parent.mkdir(exist_ok=True)
    place.write_text(text)
