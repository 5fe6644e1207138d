import pytest

from search import labels


@pytest.mark.parametrize(
    ("wanted", "there", "matches"),
    [
        ({}, {}, True),
        ({"zone": "b"}, {"zone": "b", "disk": "nvme"}, True),
        ({"zone": "b"}, {"zone": "a"}, False),
        ({"zone": "b"}, {}, False),
        ({"zone": "!b"}, {"zone": "a"}, True),
        ({"zone": "!b"}, {}, True),
        ({"zone": "!b"}, {"zone": "b"}, False),
        ({"zone": "in(a, b)"}, {"zone": "b"}, True),
        ({"zone": "in(a,b)"}, {"zone": "c"}, False),
        ({"zone": "!in(a, b)"}, {"zone": "c"}, True),
        ({"zone": "!in(a, b)"}, {"zone": "a"}, False),
        ({"zone": "b", "ray.io/market-type": "spot"}, {"zone": "b"}, False),
    ],
)
def test_a_node_is_asked_for_by_its_labels(wanted, there, matches):
    assert labels.problem(wanted) is None
    assert labels.match(wanted, there) is matches


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        (
            {"zo ne": "b"},
            "a label is letters, digits, '.', '_' and '-', with a prefix and '/' before it or not, but got",
        ),
        ({"zone": "in(a"}, "zone: must be a value, !value, in(value, value) or !in(value, value), but got 'in(a'"),
        ({"zone": "!!b"}, "zone: must be a value, !value, in(value, value) or !in(value, value), but got '!!b'"),
        ({"zone": ""}, "zone: must be a value, !value, in(value, value) or !in(value, value), but got ''"),
    ],
)
def test_labels_that_ray_would_not_understand_are_refused(wanted, problem):
    assert labels.problem(wanted).startswith(problem)


def test_ray_understands_the_same_labels():
    from ray._private.label_utils import validate_label_selector

    for value, valid in (("b", True), ("!in(a, b)", True), ("in(a)", True), ("in()", False), ("a b", False)):
        assert (labels.problem({"zone": value}) is None) is valid
        assert (validate_label_selector({"zone": value}) is None) is valid
