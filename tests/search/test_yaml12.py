import pytest

from search import yaml12
from search.errors import SpaceError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5.0e-5", 5e-5),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("012", 12),
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2001-01-01", "2001-01-01"),
        ("~", None),
        ("[1, 2.5, a]", [1, 2.5, "a"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
        ("'1e-3'", "1e-3"),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    parsed = yaml12.scalar(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_a_duplicate_key_is_an_error_that_names_both_lines():
    with pytest.raises(SpaceError) as caught:
        yaml12.parse("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", "x.yaml")
    assert str(caught.value) == "x.yaml:5: b.c: this key stands here a second time; first in line 3"


def test_what_is_no_yaml_is_an_error_with_its_line():
    with pytest.raises(SpaceError, match=r"^x\.yaml:2: this is no valid YAML: "):
        yaml12.parse("a: 1\n  b: [1, 2\n", "x.yaml")


def test_no_python_object_is_ever_made():
    with pytest.raises(SpaceError, match=r"^x\.yaml:1: a: the tag .*os\.getcwd is not allowed"):
        yaml12.parse("a: !!python/object/apply:os.getcwd []\n", "x.yaml")


def test_a_key_knows_its_line_and_a_missing_one_that_of_its_parent():
    document = yaml12.parse("a:\n  b: 1\nc:\n- x\n- y\n", "x.yaml")
    assert document.where(("a", "b")) == "x.yaml:2"
    assert document.where(("a", "missing")) == "x.yaml:1"
    assert document.where(("c", 1)) == "x.yaml:5"


def test_dotted_names_a_path_as_people_write_it():
    assert yaml12.dotted(("baselines", 0, "model.depth")) == "baselines[0].model.depth"
