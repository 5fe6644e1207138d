"""One driver per study: a lease held in the storage itself, whatever the storage is.

User attributes know no compare-and-set, but a study's name is unique in every storage. So the n-th lease of a
study is taken by creating the study ``NAME/lease/n``: of two drivers that try, one gets it. Its attributes say
who holds it and when it was last heard of. It is removed when it is given back.

A storage that goes away keeps the heart from beating. If it was the server, nobody else saw the lease either, and the
heart beats again before a stale lease is taken over; if it was our network, another driver may have taken over, so
the first thing said to a storage that is back is whose lease it is.

The window that remains: a driver that is frozen for longer than `STALE_S` (a suspended laptop, say) may lose its lease
to another one; when it wakes it looks before it writes, but a write that it had already begun goes through.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from search import records
from search.errors import LeaseError, StorageError, VqsearchError
from search.patience import Patient

BEAT_S = 5.0
STALE_S = 60.0
WRITTEN_S = 5.0
GONE_S = 3600.0
"""Seconds of silence after which a driver on another machine is dead, whatever the clocks say."""


def refuse_if_held(storage: BaseStorage, name: str) -> None:
    """Look, without taking it, whether another driver holds the lease of a study.

    Raises:
        LeaseError: one does; the message names host and process.
    """
    for number, holder in _holders(storage, name).items():
        _refuse_if_alive(storage, name, number, holder)


def driver(storage: BaseStorage, name: str) -> Holder | None:
    """Who runs a study now; None where nobody does."""
    holders = _holders(storage, name)
    return next((h for number, h in holders.items() if _runs(storage, name, number, h)), None)


def last(storage: BaseStorage, name: str) -> Holder | None:
    """Who holds the lease of a study, or held it when it died; None where it was given back. Nothing is waited for."""
    holders = _holders(storage, name)
    return holders[max(holders)] if holders else None


def lives(holder: Holder) -> bool | None:
    """Whether a driver runs: by its process here, by its beat elsewhere; None where it was silent for a while."""
    if _here(holder):
        return _alive(holder)
    silent_s = time.time() - holder.beat
    return True if abs(silent_s) < STALE_S else False if silent_s > GONE_S else None


def study_of(storage: BaseStorage, name: str, number: int) -> int:
    """Id of the study that a lease is; what is written to it goes when the lease goes.

    Raises:
        KeyError: the lease has been given back or taken over.
    """
    return storage.get_study_id_from_name(f"{name}/lease/{number}")


def is_lease(study: str) -> bool:
    """Whether a study of this name is a lease, to be hidden where studies are listed."""
    return re.search(r"/lease/\d+$", study) is not None


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lease.

    Attributes:
        number: of the lease.
        host, pid: where the driver runs.
        machine: identity of the machine's boot and process namespace, in which `pid` means something.
        born: the process's start in clock ticks since boot, so that a reused pid is not taken for it.
        beat: seconds since the epoch at which it was last heard of.
        paused: it holds the study, but runs no trial until it is told to go on.
    """

    number: int
    host: str
    pid: int
    machine: str
    born: int
    beat: float
    paused: bool


class Lease:
    """A held lease; it beats in a thread until `release`.

    Args:
        storage: where the study is.
        name: the study's name.

    Raises:
        LeaseError: another driver holds it; the message names host and process.
    """

    def __init__(self, storage: BaseStorage, name: str) -> None:
        self._storage = storage
        self._name = name
        self._prefix = f"{name}/lease/"
        self.number, self._id = self._acquire()
        self._heard = _now()
        self._over = threading.Event()
        self._lost = False
        if isinstance(storage, Patient):
            storage.returned.append(self._confirm)
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that the lease is still held; called before every write.

        The beating thread looks every `BEAT_S`. Where it has not looked for a while (the machine slept, the storage
        was silent), another driver may have taken over, so this looks itself.

        Raises:
            LeaseError: another driver has taken over.
            StorageError: the storage does not answer.
        """
        if not self._lost and _now() - self._heard > 2 * BEAT_S:
            try:
                self._look()
            except VqsearchError:
                raise
            except Exception as error:  # every storage has errors of its own
                raise StorageError(f"{self._name}: the storage does not answer: {error}") from error
        if self._lost:
            raise LeaseError(f"{self._name}: another driver has taken over this study, so this one stops writing")

    @property
    def held(self) -> bool:
        """Whether this driver may write."""
        try:
            self.check()
        except VqsearchError:
            return False
        return True

    def release(self) -> None:
        """Give the lease back."""
        self._over.set()
        self._thread.join()
        try:
            if self.held:
                self._storage.delete_study(self._id)
        finally:
            if isinstance(self._storage, Patient) and self._confirm in self._storage.returned:
                self._storage.returned.remove(self._confirm)

    def _acquire(self) -> tuple[int, int]:
        study_id = self._storage.get_study_id_from_name(self._name)
        # The count comes first: a lease that is taken after it was read makes ours a duplicate.
        past = int(self._storage.get_study_user_attrs(study_id).get(records.LEASES, 0))
        holders = _holders(self._storage, self._name)
        for number, holder in holders.items():
            _refuse_if_alive(self._storage, self._name, number, holder)
        number = max([past, *holders]) + 1
        try:
            lease = self._storage.create_new_study([StudyDirection.NOT_SET], f"{self._prefix}{number}")
        except optuna.exceptions.DuplicatedStudyError:
            raise LeaseError(f"{self._name}: another driver has just started this study") from None
        self._write(lease)
        if max(_holders(self._storage, self._name)) > number:
            self._storage.delete_study(lease)
            raise LeaseError(f"{self._name}: another driver has just started this study")
        self._storage.set_study_user_attr(study_id, records.LEASES, number)
        for old in holders:
            self._delete(f"{self._prefix}{old}")
        return number, lease

    def _write(self, lease: int) -> None:
        me: dict[str, Any] = {
            "host": socket.gethostname(), "pid": os.getpid(), "machine": _machine(), "born": _born(os.getpid()),
        }  # fmt: skip
        # The beat comes last: a holder that was heard of is complete, and who died before it holds nothing.
        for key, value in (me | {"beat": time.time()}).items():
            self._storage.set_study_user_attr(lease, key, value)

    def _delete(self, name: str) -> None:
        with contextlib.suppress(KeyError):  # Its holder may give it back in between.
            self._storage.delete_study(self._storage.get_study_id_from_name(name))

    def _keep(self) -> None:
        while not self._lost and not self._over.wait(BEAT_S):
            with contextlib.suppress(Exception):  # Every storage has errors of its own; the next beat tries again.
                self._look()

    def _confirm(self) -> None:
        """Make sure, once the storage is back, that nobody took over meanwhile; nothing is waited for in here."""
        if isinstance(self._storage, Patient):
            self._look(self._storage.inner)
        self.check()

    def _look(self, storage: BaseStorage | None = None) -> None:
        """Say that this driver lives, and see whether the lease is still the newest."""
        storage = storage or self._storage
        try:
            storage.set_study_user_attr(self._id, "beat", time.time())
            self._lost = max(_holders(storage, self._name), default=0) != self.number
        except KeyError:  # The lease is gone: who takes over removes the old one.
            self._lost = True
        self._heard = _now()


def _refuse_if_alive(storage: BaseStorage, name: str, number: int, holder: Holder) -> None:
    if _runs(storage, name, number, holder):
        holder = _holders(storage, name).get(number, holder)
        ago = max(0.0, time.time() - holder.beat)
        way = (
            f"it pauses, and vqsearch resume --study {name} ends that"
            if holder.paused
            else f"vqsearch stop --study {name} stops it; or wait for it to end"
        )
        raise LeaseError(
            f"{name}: process {holder.pid} on {holder.host} is running this study (heard of {ago:.0f} s ago); {way}"
        )


def _runs(storage: BaseStorage, name: str, number: int, holder: Holder) -> bool:
    """Whether a lease is that of a driver that lives."""
    waited = time.monotonic()
    while not holder.beat and time.monotonic() - waited < WRITTEN_S:
        # It has been created this moment, and its holder is about to write who it is.
        time.sleep(0.05)
        holder = _holders(storage, name).get(number, holder)
    return _alive(holder) or (not _here(holder) and _beats(storage, name, holder))


def _holders(storage: BaseStorage, name: str) -> dict[int, Holder]:
    prefix = f"{name}/lease/"
    found = {}
    for study in storage.get_all_studies():
        if study.study_name.startswith(prefix):
            attributes = study.user_attrs
            number = int(study.study_name[len(prefix) :])
            found[number] = Holder(
                number=number,
                host=str(attributes.get("host", "a host that did not say its name")),
                pid=int(attributes.get("pid", 0)),
                machine=str(attributes.get("machine", "")),
                born=int(attributes.get("born", 0)),
                beat=float(attributes.get("beat", 0.0)),
                paused=bool(attributes.get(records.PAUSED, False)),
            )
    return found


def _beats(storage: BaseStorage, name: str, holder: Holder) -> bool:
    """Whether a driver on another machine is alive: heard of lately, or heard of while we wait."""
    if abs(time.time() - holder.beat) < STALE_S:
        return True
    if time.time() - holder.beat > GONE_S:
        return False
    # Clocks differ between machines; whether the beat moves does not depend on them.
    time.sleep(2.5 * BEAT_S)
    return any(other.beat > holder.beat for other in _holders(storage, name).values())


def _now() -> float:
    """Seconds that go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.time()


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    if not boot.exists():
        return socket.gethostname()
    return f"{boot.read_text().strip()} {os.readlink(namespace)}"


def _born(pid: int) -> int:
    """Start of a process in clock ticks since boot; 0 where there is none or the system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[19])


def _here(holder: Holder) -> bool:
    return holder.machine == _machine()


def _alive(holder: Holder) -> bool:
    """Whether the holder is a process of this machine that runs."""
    if not _here(holder):
        return False
    if not Path("/proc").is_dir():
        try:
            os.kill(holder.pid, 0)
        except ProcessLookupError:
            return False
        return True
    return _born(holder.pid) == holder.born != 0
