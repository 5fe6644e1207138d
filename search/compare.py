"""Runs comparisons: a study for each arm, tied together, driven at once."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.storages import BaseStorage

from search import catalog, equality, launch, output, records, storage
from search.comparison import Comparison
from search.equality import Proof
from search.errors import StudyError
from search.patience import Patient
from search.progress import View
from search.space import Space


def run(
    comparison: Comparison,
    *,
    url: str,
    root: str | None,
    address: str | None = None,
    wait_for_nodes: bool = False,
    accept_code: bool = False,
    view: View,
) -> int:
    """Search all arms of a comparison and judge their finalists, from the start or from where their studies stand.

    Args:
        comparison: as loaded.
        url: storage URL.
        root: output root; None for that of the studies, or the default one.
        address, wait_for_nodes, accept_code, view: as in `launch.launch`.

    Returns:
        0 when all is done, else the number of the signal that stopped it.

    Raises:
        UserError: what the user can mend; nothing has been started or lost.
    """
    for space in comparison.arms.values():
        launch.check_trainable(space)
    proof = equality.prove(comparison)
    if root is not None:
        root = output.absolute(root)  # refused before a storage is made
    store = Patient(storage.open_storage(url, tell=view.message), view.message)
    there = load(store, comparison.name)
    if root is None and there:
        root = records.output(there[0][0])  # an arm that a cut-off launch did not make belongs beside the others
    planned = []
    for arm, space in proof.arms.items():
        tie = _tie(comparison, proof, arm)
        _require_ours(store, space, tie)
        planned.append(launch.plan(store, space, root, view, tie=tie, accept_code=accept_code))
    return launch.run([each for each in planned if each], address, wait_for_nodes, view)


def load(store: BaseStorage, name: str) -> list[tuple[optuna.Study, Space]]:
    """The arms of a comparison, to look at; none where no comparison has this name."""
    return [catalog.load(store, each) for each in catalog.tied(store, name)]


def name_of(store: BaseStorage, names: Sequence[str | None]) -> str | None:
    """The comparison that a command is asked about; None where it is about a single study.

    Args:
        store: where it may be.
        names: of one study or comparison; None where the storage holds just one.
    """
    found = catalog.expand(store, names)
    if found == list(names):
        return None
    tie = records.tie(catalog.load(store, found[0])[0])
    return None if tie is None else tie.comparison


def _tie(comparison: Comparison, proof: Proof, arm: str) -> records.Tie:
    return records.Tie(
        comparison=comparison.name, arm=arm, arms=comparison.studies, equal=dict(proof.equal), free=list(proof.free)
    )


def _require_ours(store: BaseStorage, space: Space, tie: records.Tie) -> None:
    """Make sure that a study of an arm's name, where there is one, is that arm.

    Raises:
        StudyError: it is none, or one of other arms.
    """
    known = catalog.studies(store)
    if tie.comparison in known:
        raise StudyError(
            f"{tie.comparison}: the storage holds a study of this name, so that no comparison can have it; expected "
            "another name under comparison, or --storage with another storage"
        )
    if space.study not in known:
        return
    there = records.tie(catalog.load(store, space.study)[0])
    if there is None or (there.comparison, there.arm) != (tie.comparison, tie.arm):
        raise StudyError(
            f"{space.study}: the storage holds a study of this name that is no arm of {tie.comparison}; expected "
            "another name under comparison, or --storage with another storage"
        )
    if dict(there.arms) != dict(tie.arms):
        before, now = ", ".join(there.arms), ", ".join(tie.arms)
        raise StudyError(
            f"{tie.comparison}: its arms were {before}, and now are {now}; expected the same, or another name under "
            f"comparison; vqsearch resume --study {tie.comparison} goes on with the old ones"
        )
