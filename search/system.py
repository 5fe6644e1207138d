"""What the doctor looks at in the operating system: processors, memory, limits, ports and names.

Each check takes what it judges as an argument, by default what is here.
"""

from __future__ import annotations

import math
import os
import resource
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from search.checkup import Finding

if TYPE_CHECKING:
    from search.schema import Resources

GIB = 2**30

OPEN_FILES = 4096
"""Open files below which Ray may run out of them: its processes hold connections to one another."""

PROCESSES = 4096
"""Processes and threads of a user below which Ray's workers may not start."""

SHARED_MEMORY = 256 * 2**20
"""Bytes of /dev/shm for Ray's object store, which takes 128 MiB, and torch's tensors; containers often have 64 MiB."""

TRIAL_MEMORY = 2 * GIB
"""Bytes of main memory of one trial, most of which is torch with its libraries, whatever the model."""

DASHBOARD_PORT = 8080


def processors(need: Resources | None, parallel: int | None, gpus: int, here: int | None = None) -> Iterator[Finding]:
    """Processors and threads against what trials ask for.

    Args:
        need: of one trial; None where no space says that.
        parallel: trials at once; None for what there is room for.
        gpus: of this machine.
        here: processors that this process may use.
    """
    here = len(os.sched_getaffinity(0)) if here is None else here
    threads = os.environ.get("OMP_NUM_THREADS")
    said = f"{here} CPU{'s' * (here != 1)}" + (f", OMP_NUM_THREADS={threads}" if threads else "")
    if need is None:
        yield Finding(name="processors", status="ok", said=said)
        return
    said += f"; a trial asks for {need.cpus:g}"
    fits = trials_at_once(need, gpus, here)
    if need.cpus > here:
        yield Finding(name="processors", status="error", said=said, mend=f"--set resources.cpus={here}")
    elif parallel is not None and 0 < fits < parallel:
        said += f", and parallel is {parallel}, but {fits} run{'s' * (fits == 1)} at once here"
        yield Finding(name="processors", status="warning", said=said, mend=f"more nodes, or --set parallel={fits}")
    elif threads and threads.isdigit() and int(threads) > max(1, need.cpus):
        yield Finding(name="processors", status="warning", said=said, mend=f"OMP_NUM_THREADS={max(1, int(need.cpus))}")
    else:
        yield Finding(name="processors", status="ok", said=said)


def trials_at_once(need: Resources, gpus: int, cpus: int) -> int:
    """Trials for which this machine has room, as Ray would count it."""
    fits = math.floor(cpus / need.cpus + 1e-9)
    return min(fits, gpus * math.floor(1 / need.gpus + 1e-9)) if need.gpus else fits


def memory(trials: int, info: Mapping[str, int] | None = None) -> Iterator[Finding]:
    """Main memory against the trials that run at once.

    Args:
        trials: that run at once.
        info: bytes by name, as in /proc/meminfo.
    """
    info = _memory() if info is None else info
    free, total = info.get("MemAvailable", 0), info.get("MemTotal", 0)
    if not total:
        yield Finding(name="memory", status="ok", said="not known on this system")
        return
    said = f"{free / GIB:.1f} GiB of {total / GIB:.1f} GiB are free"
    if free < trials * TRIAL_MEMORY:
        said += f"; {trials} trial{'s' * (trials != 1)} at once may need {trials * TRIAL_MEMORY / GIB:.0f} GiB"
        fewer = max(1, free // TRIAL_MEMORY)
        mend = f"--set parallel={fewer}" if fewer < trials else "end what else runs, or a machine with more"
        yield Finding(name="memory", status="warning", said=said, mend=mend)
    else:
        yield Finding(name="memory", status="ok", said=said)


def _memory() -> dict[str, int]:
    """/proc/meminfo in bytes, or less where this process's control group may have less."""
    table = Path("/proc/meminfo")
    lines = [line.split() for line in table.read_text().splitlines()] if table.exists() else []
    info = {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines}
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and used.exists() and limit.read_text().strip().isdigit():
        most = int(limit.read_text())
        info["MemTotal"] = min(info.get("MemTotal", most), most)
        info["MemAvailable"] = min(info.get("MemAvailable", most), max(0, most - int(used.read_text())))
    return info


def limits() -> Iterator[Finding]:
    """What a user may open and start."""
    for name, which, least, flag, what in (
        ("open files", resource.RLIMIT_NOFILE, OPEN_FILES, "-n", "open files"),
        ("processes", resource.RLIMIT_NPROC, PROCESSES, "-u", "processes and threads"),
    ):
        soft, hard = resource.getrlimit(which)
        if soft == resource.RLIM_INFINITY or soft >= least:
            said = "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,} {what}"
            yield Finding(name=name, status="ok", said=said)
            continue
        said = f"{soft:,} {what}; Ray may need {least:,}"
        may = hard == resource.RLIM_INFINITY or hard >= least
        mend = f"ulimit {flag} {least}" + ("" if may else f", for which the administrator raises the limit of {hard:,}")
        yield Finding(name=name, status="warning", said=said, mend=mend)


def shared_memory(size: int | None = None) -> Iterator[Finding]:
    """The size of /dev/shm, in bytes."""
    place = Path("/dev/shm")
    if size is None and not place.is_dir():
        yield Finding(name="shared memory", status="ok", said=f"no {place} on this system")
        return
    if size is None:
        usage = os.statvfs(place)
        size = usage.f_blocks * usage.f_frsize
    said = f"{place} has {size / 2**20:,.0f} MiB"
    if size < SHARED_MEMORY:
        said += f"; Ray and torch need {SHARED_MEMORY / 2**20:.0f} MiB"
        yield Finding(name="shared memory", status="warning", said=said, mend="docker run --shm-size=8g")
    else:
        yield Finding(name="shared memory", status="ok", said=said)


def port(number: int = DASHBOARD_PORT) -> Iterator[Finding]:
    """Whether the dashboard's port is free."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", number))
    except OSError as error:
        said = f"port {number}, the dashboard's, can't be had: {error.strerror}"
        yield Finding(name="port", status="warning", said=said, mend="vqsearch dashboard --port 0")
    else:
        yield Finding(name="port", status="ok", said=f"port {number}, the dashboard's, is free")


def network(name: str | None = None) -> Iterator[Finding]:
    """What a Ray on this machine needs: a connection to itself, and a name that means something.

    Args:
        name: of this machine.
    """
    name = socket.gethostname() if name is None else name
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=10).close()
    except OSError as error:
        said = f"no connection to 127.0.0.1: {error.strerror or error}; Ray can't start"
        yield Finding(name="network", status="error", said=said, mend="ip link set lo up, and no firewall on lo")
        return
    try:
        address = socket.gethostbyname(name)
    except OSError:
        said = f"the name of this machine, {name}, has no address"
        yield Finding(name="network", status="warning", said=said, mend=f"a line '127.0.1.1 {name}' in /etc/hosts")
    else:
        yield Finding(name="network", status="ok", said=f"127.0.0.1 answers; {name} is {address}")
