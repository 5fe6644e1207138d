"""What a storage holds, for readers: which studies and comparisons, one of them with its space, one of its trials."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from search import records, space
from search.errors import StudyError
from search.lease import is_lease
from search.space import Space


def studies(storage: BaseStorage) -> list[str]:
    """Names of the searches in a storage: those of vqsearch, leases aside."""
    return sorted(
        summary.study_name
        for summary in storage.get_all_studies()
        if not is_lease(summary.study_name) and records.SPACE in summary.user_attrs
    )


def tied(storage: BaseStorage, comparison: str) -> list[str]:
    """The studies that are arms of a comparison, in its order; those that a cut-off launch did not make left out.

    Returns:
        Nothing where no comparison has this name.
    """
    there = {
        summary.study_name: found
        for summary in storage.get_all_studies()
        if not is_lease(summary.study_name)
        and records.SPACE in summary.user_attrs  # written last: a study with a space is whole
        and (found := records.tie_of(summary.user_attrs)) is not None
        and found.comparison == comparison
    }
    order = [name for found in there.values() for name in found.arms.values()]
    return [name for name in dict.fromkeys(order) if name in there]


def expand(storage: BaseStorage, names: Sequence[str | None]) -> list[str | None]:
    """Names of studies, those of comparisons replaced by their arms; None, for the only study there is, as well."""
    known = studies(storage)
    found: list[str | None] = []
    for name in names:
        if name is None and known:
            ties = [records.tie_of(s.user_attrs) for s in storage.get_all_studies() if s.study_name in known]
            several = {tie.comparison if tie else "" for tie in ties}
            found += tied(storage, several.pop()) if len(several) == 1 and "" not in several else [None]
        else:
            found += [name] if name is None or name in known else tied(storage, name) or [name]
    return found


def load(storage: BaseStorage, name: str | None) -> tuple[optuna.Study, Space]:
    """A study to look at.

    Args:
        storage: where it is.
        name: its name; None where the storage holds just one.

    Raises:
        StudyError: no such study, several to choose from, or one of other software.
    """
    known = studies(storage)
    listed = f"; it holds {', '.join(known)}" if known else "; it holds no search of vqsearch"
    if name is None:
        if len(known) != 1:
            raise StudyError(f"--study is needed, since the storage does not hold exactly one search{listed}")
        name = known[0]
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        raise StudyError(f"{name}: no such study in the storage{listed}") from None
    stored = records.space(study)
    if stored is None:
        raise StudyError(f"{name}: this study was not made by vqsearch, so nothing can be said of it{listed}")
    found = space.parse(stored, f"study {name}")
    if found.study != name:  # Its folder below the output root goes by its name.
        raise StudyError(f"{name!r}: its space is that of {found.study}; a study must go by the name in its space")
    return study, found


def trial_of(study: optuna.Study, number: int) -> FrozenTrial:
    """One trial by its number.

    Raises:
        StudyError: no such trial, with the numbers there are.
    """
    trials = study.get_trials(deepcopy=False)
    if not 0 <= number < len(trials):
        there = f"from 0 to {len(trials) - 1}" if trials else "none yet"
        raise StudyError(f"{study.study_name}: no trial {number}; the numbers go {there}")
    return trials[number]
