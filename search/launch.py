"""Runs searches: checks what their trials need, opens their studies, and drives them until their budget is spent."""

from __future__ import annotations

import contextlib
import functools
import math
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from search import (
    capacity,
    catalog,
    cluster,
    code,
    curves,
    driver,
    extension,
    finalists,
    lease,
    lengthening,
    nodes,
    output,
    parameters,
    progress,
    records,
    storage,
    study,
)  # fmt: skip
from search.errors import SpaceError, StudyError
from search.patience import Patient
from search.progress import View
from search.schema import CodeFile
from search.space import Space
from search.study import OpenStudy
from vqvae import conversion
from vqvae.config import COSTS, ConfigError, TrainConfig

DECODING_EVERY_S = 10.0
"""Wall seconds between two lines about pictures being decoded."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A study that is to be driven.

    Attributes:
        space: what it searches.
        root: its output root.
        known: as it is in the storage; None for one that is to be made.
        opening: opens it, given the trials of it that run at once.
    """

    space: Space
    root: str
    known: optuna.Study | None
    opening: Callable[[int], OpenStudy]


def launch(
    space: Space,
    *,
    url: str,
    root: str | None,
    address: str | None = None,
    wait_for_nodes: bool = False,
    extend: str | None = None,
    accept_code: bool = False,
    view: View,
) -> int:
    """Search a space, from its start or from where its study stands.

    Args:
        space: a checked space file.
        url: storage URL.
        root: output root; None for that of the study, or the default one.
        address: of a Ray cluster; None starts one on this machine.
        wait_for_nodes: go on though no trial fits yet.
        extend: name of a study whose trials the new one takes over, see `search.extension`.
        accept_code: the files of code of a study that is there, or of that old one, may be others.
        view: what the user sees.

    Returns:
        0 when the search is over, else the number of the signal that stopped it.

    Raises:
        UserError: what the user can mend; nothing has been started or lost.
    """
    absolute = None if root is None else output.absolute(root)  # refused before a storage is made
    store = Patient(storage.open_storage(url, tell=view.message), view.message)
    copies: tuple[FrozenTrial, ...] = ()
    if extend is not None:
        _refuse_the_name_of_a_comparison(store, space)
        taken = extension.extend(store, space, extend, driver.measure(space), accept_code)
        copies = taken.copies
        view.message(taken.line)
    planned = plan(store, space, absolute, view, copies=copies, accept_code=accept_code)
    return run([planned] if planned else [], address, wait_for_nodes, view)


def plan(
    store: BaseStorage,
    space: Space,
    root: str | None,
    view: View,
    *,
    copies: Sequence[FrozenTrial] = (),
    tie: records.Tie | None = None,
    accept_code: bool = False,
) -> Planned | None:
    """What is to be done for a space: its study is made, or goes on.

    Args:
        store: where the study is, or will be.
        space: a checked space file.
        root: output root; None for that of the study, or the default one.
        view: what the user sees.
        copies, tie: of a new study, as in `study.create`.
        accept_code: the files of code of one that is there may be others.

    Returns:
        None where nothing is left to do.

    Raises:
        UserError: what the user can mend; nothing has been started or lost.
    """
    absolute = None if root is None else output.absolute(root)
    if tie is None:
        _refuse_the_name_of_a_comparison(store, space)
    known = study.existing(store, space, absolute, accept_code)
    if known is not None:
        lease.refuse_if_held(store, space.study)
        if _nothing_left(known, space, view):
            return None
    place = absolute or output.absolute(output.DEFAULT) if known is None else records.output(known)
    opening = functools.partial(study.create, store, space, absolute, copies=copies, tie=tie, accept_code=accept_code)
    return Planned(space=space, root=place, known=known, opening=opening)


def _refuse_the_name_of_a_comparison(store: BaseStorage, space: Space) -> None:
    if catalog.tied(store, space.study):
        raise StudyError(
            f"{space.study}: the storage holds a comparison of this name; expected another one: --study NAME"
        )


def resume(
    *,
    url: str,
    name: str | None,
    changes: Mapping[str, Any] | None = None,
    root: str | None = None,
    steps: int | None = None,
    address: str | None = None,
    wait_for_nodes: bool = False,
    plugins: Sequence[str] = (),
    accept_code: bool = False,
    view: View,
) -> int:
    """Go on with a study, or with all arms of a comparison, from the storage alone.

    Args:
        url: storage URL.
        name: of the study or the comparison; None where the storage holds just one.
        changes: keys of `study.OPERATIONAL` -> new values.
        root: where the output root has moved to.
        steps: of a trial, where they become longer, see `search.lengthening`.
        plugins, accept_code: files of its code, as in `code.require`.
        address, wait_for_nodes, view: as in `launch`.

    Returns:
        As `launch`.

    Raises:
        UserError: what the user can mend; nothing has been started or lost.
    """
    storage.open_storage(url, create=False)  # A mistyped URL must not make a database.
    store = Patient(storage.open_storage(url, tell=view.message), view.message)
    moved = None if root is None else output.absolute(root)
    names = catalog.expand(store, [name])
    if names != [name]:
        _require_all_arms(store, names)
    coded = functools.partial(code.require, given=plugins, accept=accept_code)
    planned = [_planned(store, each, changes or {}, moved, steps, coded, view) for each in names]
    return run([each for each in planned if each], address, wait_for_nodes, view)


def _require_all_arms(store: BaseStorage, names: Sequence[str | None]) -> None:
    tie = records.tie(catalog.load(store, names[0])[0])
    assert tie is not None, "other names are those of arms"
    for arm, each in tie.arms.items():
        if each not in names:
            raise StudyError(
                f"{tie.comparison}: the arm {arm} has no study yet, since the launch was cut off before; vqsearch "
                "compare with its file makes it and goes on with the others"
            )


def _planned(
    store: BaseStorage,
    name: str | None,
    changes: Mapping[str, Any],
    moved: str | None,
    steps: int | None,
    coded: Callable[[str, Sequence[CodeFile]], list[CodeFile]],
    view: View,
) -> Planned | None:
    known, space = catalog.load(store, name)
    space = study.operational(space, changes)
    if steps is not None:
        space = lengthening.lengthen(space, known.get_trials(deepcopy=False), steps)
    lease.refuse_if_held(store, known.study_name)
    if _nothing_left(known, space, view):
        return None
    plugins = coded(known.study_name, space.plugins)
    space = study.operational(space, {}, plugins)  # whose options have types now

    def opening(_parallel: int) -> OpenStudy:
        return study.resume(store, known.study_name, changes, moved, steps, plugins)

    return Planned(space=space, root=moved or records.output(known), known=known, opening=opening)


def run(planned: Sequence[Planned], address: str | None, wait_for_nodes: bool, view: View) -> int:
    """Check what every trial needs, then open the studies and drive them together.

    Args:
        planned: studies whose trials ask for the same resources; where there is none, nothing is done.
        address, wait_for_nodes, view: as in `launch`.

    Returns:
        As `launch`.

    Raises:
        UserError: what the user can mend; nothing has been started or lost.
    """
    if not planned:
        return 0
    _require_alike(planned)
    for each in planned:
        curves.check(each.space, each.root)
    with contextlib.ExitStack() as reached:
        for each in planned:
            reached.enter_context(output.reached(each.root, create=each.known is None))
            if each.known is None:
                output.require_unclaimed(each.root, each.space.study)
            else:
                study.require_files(each.known, each.root)
        return _run(planned, address, wait_for_nodes, view)


def _require_alike(planned: Sequence[Planned]) -> None:
    """An arm that went on alone may have come to ask for something else."""
    first = planned[0].space
    for each in planned[1:]:
        for key in (
            "resources.gpus",
            "resources.cpus",
            "resources.accelerator_type",
            "resources.labels",
            "parallel",
        ):
            ours, theirs = (operator.attrgetter(key)(space) for space in (first, each.space))
            if ours != theirs:
                raise StudyError(
                    f"{each.space.study}: {key} is {theirs}, but {ours} in {first.study}, and one driver runs both; "
                    f"--set {key}={ours} makes them alike"
                )


def _run(planned: Sequence[Planned], address: str | None, wait_for_nodes: bool, view: View) -> int:
    for each in planned:
        check_trainable(each.space)
        if address is None:
            check_weights(each.space)
    first = planned[0].space
    if address is None:
        prepare_data(first, view)
    from search import searcher  # with it comes Ray

    with storage.secrets_aside(), cluster.connected(address, view.message):
        if address is None:
            room, where = capacity.Capacity(first, local=True), searcher.NOWHERE_ELSE
        else:
            inspector = nodes.Inspector(needs=_needs(planned), tell=view.message)
            room = capacity.Capacity(
                first, local=False, admitted=inspector.admitted, refused=inspector.refused, grows=wait_for_nodes
            )
            where = searcher.Nodes(refused=inspector.refused, admits=inspector.admits, gone=inspector.gone)
            inspector.require(room.suiting())
        parallel = room.require(wait_for_nodes)
        if not room():
            others = "what could is taken by others" if room.suiting() else "waiting for one that can"
            view.message(f"no node can run a trial yet; {others}")
        with contextlib.ExitStack() as held:
            studies = []
            for each in planned:
                opened = held.enter_context(contextlib.closing(each.opening(math.ceil(parallel / len(planned)))))
                studies.append(opened)
                for line in opened.notes:
                    view.message(line)
            return driver.drive(studies, room, view, where)


def _nothing_left(known: optuna.Study, space: Space, view: View) -> bool:
    trials = known.get_trials(deepcopy=False)
    if finalists.outstanding(space, trials, known.direction):
        return False
    if study.spent(known, space.budget.trials):
        which = f"{space.study}: " if records.tie(known) else ""
        view.message(f"{which}the budget of {space.budget.trials} trials is spent; --trials N makes it a larger one")
        return True
    return False


def check_trainable(space: Space) -> None:
    """Build models without allocating them: what no trial could build is refused here, with its place.

    Tried are the fixed settings, every baseline, and every choice. A choice that some other choice makes possible
    passes: the combinations that don't fit are refused when they come up, and the sampler learns from them.

    Raises:
        SpaceError: with file, line and key.
    """
    from vqvae import losses, metrics, sources

    try:
        sources.require(space.base.data)
        metrics.measures(space.base.evaluation)
        losses.require(space.base.loss)
    except ConfigError as error:
        raise _refusal(space, ("train", *error.key.split(".")), error) from None
    for each in space.parameters:
        if each.name.startswith("loss.terms."):
            try:
                losses.require(conversion.replace(space.base, {each.name: 1.0}).loss)
            except ConfigError as error:
                raise _refusal(space, ("search", each.name), error) from None
    parameters.require_owners(space.parameters, space.base, space.document)
    first, measured = _first(space), driver.measure(space)
    _require_family(space, first, measured)
    choices = {p.name: p.labels for p in space.parameters if p.kind == "choice" and not p.when}
    fault = functools.partial(_fault, space, measured)
    found = fault(first)
    if found is not None and found.key not in first:
        # Options that are refused together stand under search, where none is fixed.
        own = [name for name in first if name.startswith(f"{found.key}.")]
        fixed = not own or operator.attrgetter(found.key)(space.base)
        raise _refusal(space, ("train", *found.key.split(".")) if fixed else ("search", own[0]), found)
    if space.trainer and found is None:
        _require_costs(space, measured(space.config(first)))
    for name, labels in choices.items():
        for label in labels:
            alone = first | {name: label}
            others = (alone | {other: value} for other in choices.keys() - {name} for value in choices[other])
            found = fault(alone)
            if found is not None and all(fault(labels) for labels in others):
                raise _refusal(space, ("search", name), found, f"{label!r} can't be built: {found}")
    for index, baseline in enumerate(space.baselines):
        found = fault(first | dict(baseline))
        if found is not None:
            raise _refusal(space, ("baselines", index), found, f"can't be built: {found}")


def _require_family(
    space: Space, labels: Mapping[str, Any], measured: Callable[[TrainConfig], Mapping[str, float]]
) -> None:
    """Build both models of a transfer, and find the role of each of their parameters."""
    if space.transfer is None:
        return
    from vqvae.model import roles

    for name, make in (("proxy", space.config), ("target", space.wanted)):
        try:
            config = make(labels)
            measured(config)
            roles(config)
        except ConfigError as error:
            raise _refusal(space, ("transfer", name), error, f"can't be built: train.{error}") from None


def _refusal(space: Space, path: tuple[str | int, ...], error: ConfigError, words: str = "") -> SpaceError:
    return space.document.error(path, code.hinted(words or error.problem, error))


def _require_costs(space: Space, told: Mapping[str, float]) -> None:
    """Refuse limits of what a trainer of one's own neither says before training nor may measure."""
    known = [*told, *(name for name in COSTS if name != "parameters")]
    for name in space.constraints:
        if not name.startswith("val/") and name not in known:
            raise space.document.error(
                ("constraints", name),
                f"{space.trainer} does not say it before training; known are its metrics and {', '.join(known)}",
            )


def sizes(space: Space) -> tuple[TrainConfig, TrainConfig]:
    """Configs of the first settings of a space: of a trial, and of the model that it is a search for."""
    labels = _first(space)
    return space.config(labels), space.wanted(labels)


def check_settings(space: Space, labels: Mapping[str, Any], where: str) -> None:
    """Build the model that some settings of a space make, with any other ones.

    Raises:
        SpaceError: it can't be built.
    """
    error = _fault(space, driver.measure(space), _first(space) | dict(labels))
    if error is not None:
        raise SpaceError(where, "", f"can't be built: {error}")


def _first(space: Space) -> dict[str, Any]:
    return {p.name: p.labels[0] if p.kind == "choice" else p.low for p in space.parameters if not p.when}


def _fault(
    space: Space, measured: Callable[[TrainConfig], Mapping[str, float]], labels: Mapping[str, Any]
) -> ConfigError | None:
    try:
        measured(space.config(labels))
        measured(space.wanted(labels))
    except ConfigError as error:
        return error
    return None


def check_weights(space: Space) -> None:
    """The files of weights that trials will need.

    Raises:
        WeightsError: one is missing or damaged; the message says which one goes where.
    """
    if not space.trainer:
        nodes.require_weights(space.base, _is_perceptual(space))


def _has_images(space: Space) -> bool:
    """Whether trials read images; a trainer of one's own whose space says nothing of them may read none."""
    return not space.trainer or "data" in space.source["train"]


def _is_perceptual(space: Space) -> bool:
    return space.base.loss.perceptual > 0 or any(p.name == "loss.perceptual" for p in space.parameters)


def _needs(planned: Sequence[Planned]) -> nodes.Needs:
    """What trials need of each node."""
    return nodes.Needs(
        roots=tuple(sorted({each.root for each in planned})),
        images=planned[0].space.base.data if _has_images(planned[0].space) else None,  # arms share them
        weights=tuple((each.space.base, _is_perceptual(each.space)) for each in planned if not each.space.trainer),
        plugins=tuple(code.content(file for each in planned for file in each.space.plugins)),
    )


def prepare_data(space: Space, view: View) -> None:
    """Read the images once, so that trials find them decoded; say what was skipped.

    Raises:
        DataError: no images there.
    """
    from vqvae import data

    if not _has_images(space):
        return
    told = time.monotonic()

    def tell(how_far: data.Decoding) -> None:
        nonlocal told
        if time.monotonic() - told > DECODING_EVERY_S:
            told = time.monotonic()
            view.message(progress.decoding(how_far))

    for line in progress.images(data.load(space.base.data, tell), space.base.data):
        view.message(line)
