"""Runs a search: Ray's `Tuner` with our searcher and scheduler, until the budget is spent or someone stops it."""

from __future__ import annotations

import contextlib
import functools
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial

from search import (
    cluster,
    curves,
    extension,
    finalists,
    lease,
    lengthening,
    output,
    progress,
    records,
    storage,
    study,
)  # fmt: skip
from search.errors import SpaceError, VqsearchError
from search.patience import Patient
from search.progress import View
from search.space import Space
from search.steering import Steering
from search.study import OpenStudy
from vqvae.config import ConfigError, TrainConfig

if TYPE_CHECKING:
    from search.searcher import StudySearcher

DECODING_EVERY_S = 10.0
"""Wall seconds between two lines about pictures being decoded."""


def launch(
    space: Space,
    *,
    url: str,
    root: str | None,
    address: str | None = None,
    wait_for_nodes: bool = False,
    extend: str | None = None,
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
        view: what the user sees.

    Returns:
        0 when the search is over, else the number of the signal that stopped it.

    Raises:
        UserError: what the user can mend; nothing has been started or lost.
    """
    absolute = None if root is None else output.absolute(root)
    store = Patient(storage.open_storage(url, tell=view.message), view.message)
    copies: tuple[FrozenTrial, ...] = ()
    if extend is not None:
        taken = extension.extend(store, space, extend, measure())
        copies = taken.copies
        view.message(taken.line)
    known = study.existing(store, space, absolute)
    if known is not None:
        lease.refuse_if_held(store, space.study)
        if _nothing_left(known, space, view):
            return 0
    curves.check(space, records.output(known) if known is not None else absolute or "")
    opening = functools.partial(study.create, store, space, absolute, copies=copies)
    place = absolute or output.absolute(output.DEFAULT) if known is None else records.output(known)
    with output.reached(place, create=known is None):
        if known is None:
            output.require_unclaimed(place, space.study)
        else:
            study.require_files(known, place)
        return _run(space, opening, address, wait_for_nodes, view)


def resume(
    *,
    url: str,
    name: str | None,
    changes: Mapping[str, Any] | None = None,
    root: str | None = None,
    steps: int | None = None,
    address: str | None = None,
    wait_for_nodes: bool = False,
    view: View,
) -> int:
    """Go on with a study, from its storage alone.

    Args:
        url: storage URL.
        name: of the study; None where the storage holds just one.
        changes: keys of `study.OPERATIONAL` -> new values.
        root: where the output root has moved to.
        steps: of a trial, where they become longer, see `search.lengthening`.
        address, wait_for_nodes, view: as in `launch`.

    Returns:
        As `launch`.

    Raises:
        UserError: what the user can mend; nothing has been started or lost.
    """
    storage.open_storage(url, create=False)  # A mistyped URL must not make a database.
    store = Patient(storage.open_storage(url, tell=view.message), view.message)
    known, space = study.load(store, name)
    space = study.operational(space, changes or {})
    if steps is not None:
        space = lengthening.lengthen(space, known.get_trials(deepcopy=False), steps)
    lease.refuse_if_held(store, known.study_name)
    if _nothing_left(known, space, view):
        return 0
    moved = None if root is None else output.absolute(root)
    curves.check(space, moved or records.output(known))
    output.check(moved or records.output(known), create=False)
    study.require_files(known, moved or records.output(known))

    def opening(_parallel: int) -> OpenStudy:
        return study.resume(store, known.study_name, changes, moved, steps)

    return _run(space, opening, address, wait_for_nodes, view)


def _run(
    space: Space, opening: Callable[[int], OpenStudy], address: str | None, wait_for_nodes: bool, view: View
) -> int:
    """Check what every trial needs, then open the study (given the trials that run at once) and drive it."""
    check_trainable(space)
    if address is None:
        check_weights(space)
        prepare_data(space, view)
    with storage.secrets_aside(), cluster.connected(address):
        capacity = cluster.Capacity(space, local=address is None)
        parallel = capacity.require(wait_for_nodes)
        if not capacity():
            view.message("no node can run a trial yet; waiting for one that can")
        with contextlib.closing(opening(parallel)) as opened:
            for line in opened.notes:
                view.message(line)
            return _drive(opened, capacity, view)


def _nothing_left(known: optuna.Study, space: Space, view: View) -> bool:
    trials = known.get_trials(deepcopy=False)
    if finalists.outstanding(space, trials, known.direction):
        return False
    if study.spent(known, space.budget.trials):
        view.message(f"the budget of {space.budget.trials} trials is spent; --trials N makes it a larger one")
        return True
    return False


def check_trainable(space: Space) -> None:
    """Build models without allocating them: what no trial could build is refused here, with its place.

    Tried are the fixed settings, every baseline, and every choice. A choice that some other choice makes possible
    passes: the combinations that don't fit are refused when they come up, and the sampler learns from them.

    Raises:
        SpaceError: with file, line and key.
    """
    first = _first(space)
    choices = {p.name: p.labels for p in space.parameters if p.kind == "choice" and not p.when}
    fault = functools.partial(_fault, space, measure())
    error = fault(first)
    if error is not None and error.key not in first:
        raise space.document.error(("train", *error.key.split(".")), error.problem)
    for name, labels in choices.items():
        for label in labels:
            alone = first | {name: label}
            others = (alone | {other: value} for other in choices.keys() - {name} for value in choices[other])
            error = fault(alone)
            if error is not None and all(fault(labels) for labels in others):
                raise space.document.error(("search", name), f"{label!r} can't be built: {error}")
    for index, baseline in enumerate(space.baselines):
        error = fault(first | dict(baseline))
        if error is not None:
            raise space.document.error(("baselines", index), f"can't be built: {error}")


def check_settings(space: Space, labels: Mapping[str, Any], where: str) -> None:
    """Build the model that some settings of a space make, with any other ones.

    Raises:
        SpaceError: it can't be built.
    """
    error = _fault(space, measure(), _first(space) | dict(labels))
    if error is not None:
        raise SpaceError(where, "", f"can't be built: {error}")


def _first(space: Space) -> dict[str, Any]:
    return {p.name: p.labels[0] if p.kind == "choice" else p.low for p in space.parameters if not p.when}


def _fault(
    space: Space, measured: Callable[[TrainConfig], Mapping[str, float]], labels: Mapping[str, Any]
) -> ConfigError | None:
    try:
        measured(space.config(labels))
    except ConfigError as error:
        return error
    return None


def check_weights(space: Space) -> None:
    """The files of weights that trials will need.

    Raises:
        WeightsError: one is missing or damaged; the message says which one goes where.
    """
    from vqvae import weights
    from vqvae.perceptual import LPIPS

    weights.require(space.base)
    if space.base.evaluation.lpips:
        LPIPS("alex", space.base.evaluation.lpips_trunk)
    if space.base.loss.perceptual or any(p.name == "loss.perceptual" for p in space.parameters):
        LPIPS("vgg", space.base.loss.lpips_trunk)


def prepare_data(space: Space, view: View) -> None:
    """Read the images once, so that trials find them decoded; say what was skipped.

    Raises:
        DataError: no images there.
    """
    from vqvae import data

    told = time.monotonic()

    def tell(how_far: data.Decoding) -> None:
        nonlocal told
        if time.monotonic() - told > DECODING_EVERY_S:
            told = time.monotonic()
            view.message(progress.decoding(how_far))

    for line in progress.images(data.load(space.base.data, tell), space.base.data):
        view.message(line)


def measure() -> Callable[[TrainConfig], Mapping[str, float]]:
    """What can be known of a config before any training: parameters, bits per image, tokens."""
    from vqvae.model import bits_per_image, count_parameters

    @functools.lru_cache(maxsize=4096)
    def of(config: TrainConfig) -> Mapping[str, float]:
        return {
            "parameters": float(count_parameters(config)),
            "bits_per_image": bits_per_image(config),
            "tokens": float(config.tokens),
        }

    return of


def _drive(opened: OpenStudy, capacity: cluster.Capacity, view: View) -> int:
    """Run Ray's controller in this thread until nothing is left to do."""
    from search import pruning, searcher

    opened.study.pruner = pruning.build(opened.space)
    control = cluster.control()
    steering = Steering(opened, control)
    measured = measure()
    try:
        with view.watching([opened]), curves.written(opened), _signals(opened, steering.drain, view) as caught:

            def steer() -> None:
                _take_back_sigusr1()
                steering()

            while True:
                asked = searcher.StudySearcher(opened, capacity, measured, control.name, steer)
                _fit(opened, asked)
                # A pause ends Ray's run, so that its workers give their GPUs back; the driver and its lease stay.
                if opened.failure is not None or not asked.paused or not steering.wait():
                    break
    except Exception as error:  # noqa: BLE001 - Ray wraps what our searcher and scheduler raise
        raise _ours(error) or error from None
    if opened.failure is not None:
        raise opened.failure
    return caught[0] if caught else int(signal.SIGTERM) if steering.stopped else 0


def _fit(opened: OpenStudy, search: StudySearcher) -> None:
    from ray import tune

    from search import pruning, trainable

    need = opened.space.resources
    # What Ray writes down of a run nobody reads. Below the output root it would make anew one that has vanished.
    with tempfile.TemporaryDirectory(prefix="vqsearch-", ignore_cleanup_errors=True) as scratch:
        tuner = tune.Tuner(
            tune.with_resources(trainable.run, {"cpu": need.cpus, "gpu": need.gpus}),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=pruning.StudyScheduler(opened),
                num_samples=-1,
                max_concurrent_trials=opened.space.budget.trials + 1,  # one more: Ray goes on asking, and we steering
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(name="ray", storage_path=scratch, verbose=0),
        )
        tuner.fit()


def _ours(error: BaseException | None) -> VqsearchError | None:
    while error is not None and not isinstance(error, VqsearchError):
        error = error.__cause__ or error.__context__
    return error


def _take_back_sigusr1() -> None:
    """Ray takes this signal for itself at the start of every run, and would end it without a checkpoint."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, signal.getsignal(signal.SIGTERM))


@contextlib.contextmanager
def _signals(opened: OpenStudy, drain: Callable[[], None], view: View) -> Iterator[list[int]]:
    """The first signal drains, a second Ctrl-C ends at once; yields the list of signals caught."""
    caught: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        opened.draining = True  # at once; what follows may take a moment
        # Neither a call to Ray nor a line to a terminal that may be gone belongs into a signal handler.
        threading.Thread(target=announce, args=(number,), daemon=True).start()

    def announce(number: int) -> None:
        drain()
        view.message(
            f"{signal.Signals(number).name}: running trials save a checkpoint and stop; once more ends at once"
        )

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in numbers}
    in_main_thread = threading.current_thread() is threading.main_thread()
    for number in numbers if in_main_thread else ():
        signal.signal(number, handle)
    try:
        yield caught
    finally:
        for number, handler in before.items() if in_main_thread else ():
            signal.signal(number, handler)
