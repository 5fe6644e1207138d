from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqvae import partition
from vqvae.sources import DataError

NAMES = ["a.png", "b c.png", "d.png", "sub/e.png"]


def homes(groups, *fractions):
    return {name: rows.tolist() for name, rows in partition.split(groups, *fractions).items()}


def test_groups_are_never_divided():
    groups = [str(index // 5) for index in range(100)]
    found = [{groups[row] for row in rows} for rows in homes(groups, 0.2, 0.2).values()]
    assert [len(home) for home in found] == [12, 4, 4]
    assert len(set.union(*found)) == 20


@given(
    groups=st.lists(st.integers(0, 30).map(str), min_size=3, max_size=120).filter(lambda groups: len(set(groups)) > 2),
    validation=st.floats(0.01, 0.49),
    test=st.floats(0.01, 0.49),
)
@settings(max_examples=200, deadline=None)
def test_splits_are_disjoint_complete_filled_and_never_divide_a_group(groups, validation, test):
    rows = homes(groups, validation, test)
    assert sorted(rows["train"] + rows["validation"] + rows["test"]) == list(range(len(groups)))
    assert all(rows.values())
    found = [{groups[row] for row in part} for part in rows.values()]
    assert sum(len(home) for home in found) == len(set(groups))
    smallest_two = sum(sorted(Counter(groups).values())[:2])
    assert len(rows["test"]) <= max(round(len(groups) * test), smallest_two)


@given(count=st.integers(60, 400), new=st.integers(0, 10**6), fraction=st.floats(0.02, 0.3))
@settings(max_examples=100, deadline=None)
def test_adding_a_picture_moves_at_most_three_of_the_others(count, new, fraction):
    names = [f"{index}.png" for index in range(count)]
    before, after = homes(names, fraction, fraction), homes([*names, f"new{new}.png"], fraction, fraction)
    moved = sum(len(set(before[split]) - set(after[split])) for split in partition.SPLITS)
    assert moved <= 3


def test_the_order_of_the_pictures_does_not_matter():
    names = [f"{index}.png" for index in range(50)]
    there, back = homes(names, 0.1, 0.1), homes(names[::-1], 0.1, 0.1)
    assert {names[row] for row in there["test"]} == {names[::-1][row] for row in back["test"]}


def test_a_group_too_large_to_be_held_out_trains():
    groups = ["film"] * 500 + [str(index) for index in range(500)]
    rows = homes(groups, 0.05, 0.05)
    assert [len(rows[name]) for name in partition.SPLITS] == [900, 50, 50]
    assert not {groups[row] for row in rows["validation"] + rows["test"]} & {"film"}


def test_where_every_group_is_too_large_the_smallest_ones_are_held_out():
    rows = homes(["a"] * 30 + ["b"] * 20 + ["c"] * 40, 0.05, 0.05)
    assert {name: len(part) for name, part in rows.items()} == {"train": 40, "validation": 30, "test": 20}


def test_fewer_groups_than_splits_are_refused():
    with pytest.raises(ValueError, match=r"^expected at least 3 for its splits, but got 2$"):
        partition.split(["a", "b", "b"], 0.1, 0.1)
    assert homes(["a", "b", "b"], 0.1, 0.0)["test"] == []


@pytest.fixture
def listed(tmp_path):
    def read(text):
        (tmp_path / "splits.txt").write_text(text)
        return partition.listed(tmp_path / "splits.txt", NAMES, {"broken.png"})

    return read


def test_a_list_gives_the_splits_and_the_rest_trains(listed):
    rows = listed("# mine\nvalidation b c.png\n\ntest sub/e.png\ntrain d.png\ntest broken.png\n")
    assert {name: part.tolist() for name, part in rows.items()} == {"train": [0, 2], "validation": [1], "test": [3]}
    assert rows["train"].dtype == np.int64


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("val a.png\n", ":1: expected \"train|validation|test NAME\", but got 'val a.png'"),
        ("\ntest\n", ":2: expected \"train|validation|test NAME\", but got 'test'"),
        ("test a.png\ntrain a.png\n", ":2: a.png is listed already, in line 1; expected it once"),
        ("test e.png\n", ":1: no picture e.png; expected the name of one, such as a.png"),
        ("test a.png\n", ": leaves no picture in validation; expected at least one"),
        ("".join(f"validation {name}\n" for name in NAMES), ": leaves no picture in train; expected at least one"),
    ],
)
def test_a_wrong_list_is_refused_with_the_line(listed, tmp_path, text, problem):
    with pytest.raises(DataError) as caught:
        listed(text)
    assert str(caught.value) == f"{tmp_path}/splits.txt{problem}"


def test_a_missing_list_is_refused(tmp_path):
    with pytest.raises(DataError) as caught:
        partition.listed(tmp_path / "none", NAMES, ())
    assert str(caught.value) == (f"{tmp_path}/none: No such file or directory; expected a list of splits (data.splits)")
