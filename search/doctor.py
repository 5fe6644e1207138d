"""Everything that a search needs of this machine, looked at before it runs: one line each, with the mend."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search import machine, system
from search.checkup import Finding, refused
from search.errors import SpaceError, UserError, VqsearchError
from vqvae.config import VqvaeError

if TYPE_CHECKING:
    from search.comparison import Comparison
    from search.space import Space

LIMIT_S = 60.0
"""Wall seconds after which a check is given up; a network file system or a driver that hangs takes no signal."""


MODELS_S = 600.0
"""Wall seconds for what `vqsearch validate` does: it builds every choice."""

SCANNING = frozenset({"mamba", "bimamba", "mambavision"})
"""Backbones for which mamba_ssm has kernels."""


def examine(
    file: str | None,
    overrides: Sequence[str],
    *,
    url: Callable[[Space | None], str],
    root: str | None,
    plugins: Sequence[str] = (),
) -> Iterator[Finding]:
    """Look at everything, one thing after the other; nothing that is found is raised, and nothing takes for ever.

    Args:
        file: a space file or a comparison; None looks at what any search needs.
        overrides: as in `search.space.load`.
        url: gives the URL of the storage, given the space.
        root: output root; None for that of the space, or the default one.
        plugins: files of code besides those of the space.
    """
    yield from guarded("packages", machine.packages)
    loaded: list[Space] = []
    ran = guarded("plug-ins", functools.partial(_plugins, file, overrides, plugins), MODELS_S)
    yield from ran
    if file is not None and all(each.status == "ok" for each in ran):
        yield from guarded("space", functools.partial(_space, file, overrides, plugins, loaded), MODELS_S)
    first = loaded[0] if loaded else None
    need, parallel = (first.resources, first.parallel) if first else (None, None)
    usable: list[machine.Device] = []

    def graphics() -> Iterable[Finding]:
        found = machine.read_graphics()
        usable.extend(found.devices)
        return machine.gpus(found, need.gpus if need else None)

    yield from guarded("gpus", graphics)
    yield from guarded("kernels", lambda: machine.kernels(_scans(loaded), bool(usable)))
    yield from guarded("processors", lambda: system.processors(need, parallel, len(usable)))
    yield from guarded("memory", lambda: system.memory(parallel or 1))
    for name, check in (
        ("shared memory", system.shared_memory),
        ("limits", system.limits),
        ("port", system.port),
        ("network", system.network),
    ):
        yield from guarded(name, check)
    yield from _places(loaded, url, root)


def _places(loaded: Sequence[Space], url: Callable[[Space | None], str], root: str | None) -> Iterator[Finding]:
    first = loaded[0] if loaded else None
    try:
        from search import output, places, stored
    except (ImportError, OSError) as error:  # OSError: a library of a package can't be loaded
        yield _crashed("places", error)
        return
    place = root or (first.output if first else None) or output.DEFAULT

    def output_root() -> Iterable[Finding]:
        return places.output_root(place, sum(map(places.checkpoints, loaded)))

    yield from guarded("weights", lambda: places.weights(loaded))
    if first is not None and not (first.trainer and "data" not in first.source["train"]):
        yield from guarded("images", lambda: places.images(first.base.data))
    yield from guarded("output", output_root)
    yield from guarded("temporary", places.temporary)
    try:
        where = url(first)  # in this thread, which knows the command line
    except UserError as error:
        yield _crashed("storage", error)
    else:
        yield from guarded("storage", lambda: stored.storage(where))


def _plugins(file: str | None, overrides: Sequence[str], given: Sequence[str]) -> Iterator[Finding]:
    """Whether the code that the user names here runs here; that of a space file that can't be read is its own line."""
    from search import code, space, yaml12
    from vqvae.plugins import PluginError

    try:
        document = space.read(file, overrides) if file is not None else yaml12.Document(name="", value={})
    except SpaceError:
        return
    try:
        for each in code.of_file(document, Path(file or "").resolve().parent, given):
            said = f"{each['path']} ({code.short(each['sha256'])}) runs here"
            yield Finding(name="plug-ins", status="ok", said=said)
    except PluginError as error:
        mend = "mend the file, or install what it imports; nothing that needs it can be built"
        yield Finding(name="plug-ins", status="error", said=str(error).partition("; ")[0], mend=mend)


def _space(file: str, overrides: Sequence[str], plugins: Sequence[str], loaded: list[Space]) -> Iterator[Finding]:
    """What `vqsearch validate` checks; the spaces are kept though one of their models can't be built."""
    from search import comparison, curves, equality, launch, space

    compared: Comparison | None = None
    if comparison.is_comparison(file):
        compared = comparison.load(file, overrides, plugins=plugins)
        loaded.extend(compared.arms.values())
    else:
        loaded.append(space.load(file, overrides, plugins=plugins))
    for each in loaded:
        launch.check_trainable(each)
        curves.check(each, each.output or "")
    if compared is None:
        (one,) = loaded
        said = f"{file}: {len(one.parameters)} parameters, {one.budget.trials} trials"
    else:
        equality.prove(compared)
        said = f"{file}: {len(loaded)} arms, {compared.common.budget.trials} trials each"
    yield Finding(name="space", status="ok", said=said)


def _scans(loaded: Sequence[Space]) -> bool:
    """Whether any trial has a backbone with a scan; so it is where no space says that."""
    used: set[Any] = set()
    for each in loaded:
        if each.trainer:
            continue
        searched = [p.labels for p in each.parameters if p.name == "model.backbone"]
        used.update(searched[0] if searched else (each.base.model.backbone,))
    return not loaded or bool(used & SCANNING)


def guarded(name: str, check: Callable[[], Iterable[Finding]], limit_s: float = LIMIT_S) -> tuple[Finding, ...]:
    """The findings of a check; one that crashes or hangs is a finding too.

    Args:
        name: of the finding that says so.
        check: looks, in a thread of its own.
        limit_s: wall seconds it may take.
    """
    found: list[tuple[Finding, ...]] = []

    def look() -> None:
        try:
            found.append(tuple(check()))
        except BaseException as error:  # noqa: BLE001 - whatever it is, the other checks go on and this one is told
            found.append((_crashed(name, error),))

    thread = threading.Thread(target=look, name=f"doctor-{name}", daemon=True)
    thread.start()
    thread.join(limit_s)
    if not found:
        mend = "a disk, a server or a driver hangs; mend that, then look again"
        return (Finding(name=name, status="error", said=f"no answer within {limit_s:g} s", mend=mend),)
    return found[0]


def _crashed(name: str, error: BaseException) -> Finding:
    """The finding that a check could not be done; ours say it in their own words."""
    if isinstance(error, (VqsearchError, VqvaeError)):
        return refused(name, str(error))
    said = f"can't be checked: {type(error).__name__}"
    if words := _without_password(error):
        said += f": {words}"
    mend = "packages above says what to install" if isinstance(error, ImportError) else ""
    return Finding(name=name, status="error", said=said, mend=mend)


def _without_password(error: BaseException) -> str:
    words = (str(error).strip().splitlines() or [""])[0]
    if isinstance(error, ImportError):  # maybe of what hides passwords; it holds none
        return words
    from search.storage import redact

    return redact(words)
