"""Drives studies: one run of Ray's `Tuner` with our searcher and scheduler, until nothing is left to do."""

from __future__ import annotations

import contextlib
import functools
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from search import cluster, code, curves, trainer
from search.capacity import request
from search.errors import VqsearchError
from search.progress import View
from search.space import Space
from search.steering import Steering
from search.study import OpenStudy
from vqvae.config import TrainConfig

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory

    from search.interleaving import Interleaved
    from search.schema import Resources
    from search.searcher import Nodes


def measure(space: Space) -> Callable[[TrainConfig], Mapping[str, float]]:
    """What can be known of a config before any training: parameters, bits per image, tokens.

    Of a trainer of one's own, whose file has run here, it is what that says.
    """
    from vqvae.model import bits_per_image, count_parameters

    if space.trainer:
        known = trainer.of(space.plugins, space.trainer)
        assert known is not None, "a driver has run the code of its studies"
        return functools.lru_cache(maxsize=4096)(known.quantities)

    @functools.lru_cache(maxsize=4096)
    def of(config: TrainConfig) -> Mapping[str, float]:
        return {
            "parameters": float(count_parameters(config)),
            "bits_per_image": bits_per_image(config),
            "tokens": float(config.tokens),
        }

    return of


def drive(studies: Sequence[OpenStudy], capacity: Callable[[], int], view: View, nodes: Nodes | None = None) -> int:
    """Run Ray's controller in this thread until nothing is left to do.

    Args:
        studies: with their leases; trials of all of them ask for the same resources.
        capacity: trials of any of them that the cluster can run at once, now.
        view: what the user sees.
        nodes: where trials run, if that is not this machine alone.

    Returns:
        0 when all searches are over, else the number of the signal that stopped them.

    Raises:
        VqsearchError: what ended them.
    """
    from search import pruning, searcher

    nodes = nodes or searcher.NOWHERE_ELSE
    for opened in studies:
        opened.study.pruner = pruning.build(opened.space)
    control = cluster.control()
    steering = Steering(studies, control)
    try:
        with contextlib.ExitStack() as held:
            held.enter_context(view.watching(studies))
            for opened in studies:
                held.enter_context(curves.written(opened))
            caught = held.enter_context(_signals(studies, steering.drain, view))

            def steer() -> None:
                _take_back_sigusr1()
                steering()

            while True:
                asked = _interleaved(studies, capacity, control.name, steer, nodes)
                _fit(studies, asked, nodes)
                # A pause ends Ray's run, so that its workers give their GPUs back; the driver and its leases stay.
                if any(opened.failure for opened in studies) or not asked.paused or not steering.wait():
                    break
    except Exception as error:  # noqa: BLE001 - Ray wraps what our searcher and scheduler raise
        raise _ours(error) or error from None
    for opened in studies:
        if opened.failure is not None:
            raise opened.failure
    return caught[0] if caught else int(signal.SIGTERM) if steering.stopped else 0


def _interleaved(
    studies: Sequence[OpenStudy],
    capacity: Callable[[], int],
    control: str,
    steer: Callable[[], None],
    nodes: Nodes,
) -> Interleaved:
    from search import interleaving, searcher

    def left_for(opened: OpenStudy) -> int:
        return capacity() - sum(len(other.flights) for other in studies if other is not opened)

    arms = [
        searcher.StudySearcher(each, functools.partial(left_for, each), measure(each.space), control, nodes)
        for each in studies
    ]
    return interleaving.Interleaved(arms, capacity, steer)


def _fit(studies: Sequence[OpenStudy], search: Interleaved, nodes: Nodes) -> None:
    from ray import tune

    from search import pruning, trainable

    need = studies[0].space.resources
    # By Ray alone: nothing of it gets into the storage or below the output root.
    plugins = code.content(file for opened in studies for file in opened.space.plugins)
    trainee = tune.with_parameters(trainable.run, plugins=plugins) if plugins else trainable.run
    # What Ray writes down of a run nobody reads. Below the output root it would make anew one that has vanished.
    with tempfile.TemporaryDirectory(prefix="vqsearch-", ignore_cleanup_errors=True) as scratch:
        tuner = tune.Tuner(
            tune.with_resources(trainee, functools.partial(_resources, need)),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=pruning.StudyScheduler(studies, nodes),
                num_samples=-1,
                max_concurrent_trials=10**6,  # never reached: our searcher knows what fits, and steers when asked
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(name="ray", storage_path=scratch, verbose=0),
        )
        tuner.fit()


def _resources(need: Resources, assignment: Mapping[str, Any]) -> PlacementGroupFactory:
    return request(need, assignment["avoided"])


def _ours(error: BaseException | None) -> VqsearchError | None:
    while error is not None and not isinstance(error, VqsearchError):
        error = error.__cause__ or error.__context__
    return error


def _take_back_sigusr1() -> None:
    """Ray takes this signal for itself at the start of every run, and would end it without a checkpoint."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, signal.getsignal(signal.SIGTERM))


@contextlib.contextmanager
def _signals(studies: Sequence[OpenStudy], drain: Callable[[], None], view: View) -> Iterator[list[int]]:
    """The first signal drains, a second Ctrl-C ends at once; yields the list of signals caught."""
    caught: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        for opened in studies:
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
