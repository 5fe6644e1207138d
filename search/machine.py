"""What the doctor looks at in this machine's packages, GPUs and kernels.

Each check takes what it judges as an argument, by default what is here, and works where torch can't be imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata

from search.checkup import Finding, Status

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU that torch has run a kernel on.

    Attributes:
        name: as the driver says it.
        memory: bytes.
        bfloat16: whether it computes in bfloat16 itself.
    """

    name: str
    memory: int
    bfloat16: bool


@dataclass(frozen=True, kw_only=True)
class Graphics:
    """What driver and torch say of the GPUs.

    Attributes:
        seen: names of those that the driver lists.
        driver: its version; "" where there is none.
        serves: the newest CUDA that the driver serves, such as "12.8"; "" where it does not say.
        torch: its version; "" where it can't be imported.
        built: the CUDA that torch is built for; "" for a build without.
        devices: what torch can use.
        problem: why torch can't use what is there.
    """

    seen: tuple[str, ...] = ()
    driver: str = ""
    serves: str = ""
    torch: str = ""
    built: str = ""
    devices: tuple[Device, ...] = ()
    problem: str = ""


def packages(
    python: str | None = None,
    required: Sequence[str] | None = None,
    version: Callable[[str], str | None] | None = None,
) -> Iterator[Finding]:
    """Python and the packages, against what the project asks for.

    Args:
        python: its version.
        required: requirements such as ``ray[tune]>=2.50``; extras are not asked for.
        version: of an installed package; None where it is not installed.
    """
    try:
        needs = metadata.requires("vqsearch") or [] if required is None else required
        oldest = metadata.metadata("vqsearch")["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        yield Finding(name="packages", status="warning", said="vqsearch is not installed", mend="pip install -e .")
        return
    python, version = python or ".".join(map(str, sys.version_info[:3])), version or _version
    wrong, mends = [], []
    if not _reaches(python, oldest.removeprefix(">=")):
        wrong.append(f"Python is {python}, older than {oldest.removeprefix('>=')}")
        mends.append(f"an environment with Python {oldest}")
    install = []
    needs = [each for each in needs if ";" not in each]
    for need in needs:
        matched = re.match(r"([\w.-]+)(?:\[.*?\])?(?:>=([\w.]+))?", need)
        assert matched is not None, need
        name, least = matched[1], matched[2] or ""
        found = version(name)
        if found is None or not _reaches(found, least):
            wrong.append(f"{name} is {'not installed' if found is None else f'{found}, older than {least}'}")
            install.append(f"'{need}'")
    if install:
        mends.append(f"pip install {' '.join(install)}")
    if wrong:
        yield Finding(name="packages", status="error", said="; ".join(wrong), mend="; ".join(mends))
        return
    told = ", ".join(f"{name} {found}" for name in ("torch", "ray", "optuna") if (found := version(name)))
    yield Finding(name="packages", status="ok", said=f"Python {python}, {len(needs)} packages as required: {told}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _reaches(found: str, least: str) -> bool:
    """Whether a version is no older; what follows its numbers is not compared.

    >>> _reaches("2.11.0+cu128", "2.9"), _reaches("2.10", "2.11")
    (True, False)
    """

    def numbers(version: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", re.split(r"[+a-z]", version, maxsplit=1)[0])]

    return numbers(found) >= numbers(least)


def gpus(found: Graphics, wanted: float | None = None) -> Iterator[Finding]:
    """GPUs and driver against torch's CUDA build.

    Args:
        found: what is there.
        wanted: GPUs of one trial; None where no space says that.
    """
    if not found.torch:
        mend = "pip install --force-reinstall torch torchvision"
        yield Finding(name="gpus", status="error", said=f"torch can't be imported: {found.problem}", mend=mend)
        return
    driver = f"driver {found.driver or 'unknown'}" + (f" (CUDA up to {found.serves})" if found.serves else "")
    build = f"torch {found.torch} " + (f"for CUDA {found.built}" if found.built else "without CUDA")
    if found.devices:
        plain = [device.name for device in found.devices if not device.bfloat16]
        each = [f"{device.name} with {device.memory / GIB:.0f} GiB" for device in found.devices]
        said = f"{_counted(each)}; {driver}, {build}"
        if plain:
            said += f"; {_counted(plain)} without bfloat16, which would be emulated slowly"
            yield Finding(name="gpus", status="warning", said=said, mend="--set train.precision=float32")
        else:
            yield Finding(name="gpus", status="ok", said=f"{said}; bfloat16")
        return
    status: Status
    if not found.seen:
        said, mend = f"no NVIDIA GPU that a driver lists; {build}", "a machine with one and its driver (nvidia-smi)"
        status = "error" if wanted else "warning" if wanted is None else "ok"
    else:
        said, mend = _unusable(found, driver, build)
        status = "error" if wanted else "warning"
    if wanted:
        mend += ", or --set resources.gpus=0"
    yield Finding(name="gpus", status=status, said=said, mend="" if status == "ok" else mend)


def _unusable(found: Graphics, driver: str, build: str) -> tuple[str, str]:
    said = f"{_counted(found.seen)}; {driver}, but {build}"
    which = f" for CUDA {found.serves} or older" if found.serves else ""
    if not found.built:
        return said, f"a CUDA build of torch{which} (pytorch.org/get-started)"
    if found.serves and int(found.serves.split(".")[0]) < int(found.built.split(".")[0]):
        return said, f"a newer driver, or a build of torch{which}"
    mend = "$CUDA_VISIBLE_DEVICES, nvidia-smi and the driver's log say more"
    return f"{said} can't use {'it' if len(found.seen) == 1 else 'them'}: {found.problem}", mend


def read_graphics() -> Graphics:
    """What is here; a kernel is run on each GPU, since one that torch lists may be of a kind it has no kernels for."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library of it can't be loaded
        return Graphics(problem=str(error).partition("\n")[0])

    table = _ask("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    rows = [line.rsplit(", ", 1) for line in table.splitlines() if ", " in line]
    serves = re.search(r"CUDA[\w ]*Version\s*:\s*(\d+\.\d+)", _ask("nvidia-smi")) if rows else None
    devices, problem = [], ""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
                torch.ones(8, device=f"cuda:{index}").sum().item()
                facts = torch.cuda.get_device_properties(index)
                # The first generation that computes in bfloat16 is Ampere, 8.0.
                devices.append(Device(name=facts.name, memory=facts.total_memory, bfloat16=facts.major >= 8))
        except RuntimeError as error:
            devices, problem = [], str(error).splitlines()[0]
    if not devices:
        problem = problem or (str(told[0].message).splitlines()[0] if told else "torch finds none")
    return Graphics(
        seen=tuple(name for name, _ in rows),
        driver=rows[0][1].strip() if rows else "",
        serves=serves[1] if serves else "",
        torch=torch.__version__,
        built=torch.version.cuda or "",
        devices=tuple(devices),
        problem=problem,
    )


def _ask(*command: str) -> str:
    """What a program prints; "" where there is none, or it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _counted(names: Sequence[str]) -> str:
    """``2 x A, B``, in the order of their first."""
    several = {name: names.count(name) for name in names}
    return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in several.items())


def kernels(searched: bool, with_gpu: bool, module: str = "mamba_ssm") -> Iterator[Finding]:
    """The CUDA kernels of mamba_ssm, without which ours run in plain PyTorch.

    Args:
        searched: whether a backbone with a scan is trained; so it is where no space says that.
        with_gpu: whether there is a GPU to run them.
        module: that holds them.
    """
    ours = "the scan runs in plain PyTorch"
    if importlib.util.find_spec(module) is None:
        slow = searched and with_gpu
        mend = "pip install --no-build-isolation 'vqsearch[mamba]'" if slow else ""
        said = f"{module} is not installed; {ours}" + (", more slowly than its kernels would on a GPU" if slow else "")
        yield Finding(name="kernels", status="warning" if slow else "ok", said=said, mend=mend)
        return
    mend = "build it for this torch: pip install --force-reinstall --no-build-isolation --no-deps mamba-ssm"
    try:
        importlib.import_module(f"{module}.ops.triton.ssd_combined")
    except ImportError as error:
        said = f"{module} can't be imported ({str(error).partition(chr(10))[0]}); {ours}"
        yield Finding(name="kernels", status="warning", said=said, mend=mend)
    except Exception as error:  # noqa: BLE001 - vqvae.ssd expects ImportError only: with any other every trial fails
        said = f"{module} fails when it is imported: {type(error).__name__}"
        yield Finding(name="kernels", status="error", said=said, mend=f"{mend}; or pip uninstall mamba-ssm")
    else:
        yield Finding(name="kernels", status="ok", said=f"{module} {_version('mamba-ssm') or ''}".strip())
