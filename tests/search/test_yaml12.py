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


def test_a_character_that_no_yaml_may_hold_is_an_error_with_its_line():
    with pytest.raises(SpaceError, match=r"^a\.yaml:2: this is no valid YAML: it holds the character U\+001B$"):
        yaml12.parse("study: a\nseed: \x1b[2J\n", "a.yaml")


def test_no_python_object_is_ever_made():
    with pytest.raises(SpaceError, match=r"^x\.yaml:1: a: the tag .*os\.getcwd is not allowed"):
        yaml12.parse("a: !!python/object/apply:os.getcwd []\n", "x.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x: 1\na: !!int foo\n", "x.yaml:2: a: 'foo' is no int"),
        ("x: 1\na: [!!float '']\n", "x.yaml:2: a[0]: '' is no float"),
        ("a: !!bool perhaps\n", "x.yaml:1: a: 'perhaps' is no bool"),
        ("x: 1\n!!int foo: 1\n", "x.yaml:2: 'foo' is no int"),
        (f"a: 1{'0' * 5000}\n", "x.yaml:1: a: '[...]' is no int"),
        ("a: !!map foo\n", "x.yaml:1: a: this is no map"),
        ("a: !!int [1]\n", "x.yaml:1: a: this is no int"),
        ("x:\n  ~: 1\n", "x.yaml:2: x: a key must be text"),
        ("x:\n  [1]: 1\n", "x.yaml:2: x: a key must be text"),
        ("x:\n  !!binary x: 1\n", "x.yaml:2: x: a key must be text"),
    ],
)
def test_a_value_or_key_that_does_not_fit_is_an_error_with_its_line(text, message):
    with pytest.raises(SpaceError) as caught:
        yaml12.parse(text, "x.yaml")
    assert str(caught.value) == message


def test_aliases_are_expanded():
    document = yaml12.parse("a: &x {b: [1]}\nc: *x\nd: [*x, *x]\n", "x.yaml")
    assert document.value == {"a": {"b": [1]}, "c": {"b": [1]}, "d": [{"b": [1]}] * 2}
    assert document.where(("c", "b")) == "x.yaml:1"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("x: 1\na: &x {b: *x}\n", "x.yaml:2: a.b"),
        ("x: 1\na: &x\n  - c\n  - d: [*x]\n", "x.yaml:2: a[1].d[0]"),
        ("&x [*x]", "x.yaml:1: [0]"),
    ],
)
def test_an_alias_of_what_holds_it_is_refused(text, where):
    with pytest.raises(SpaceError) as caught:
        yaml12.parse(text, "x.yaml")
    assert str(caught.value) == f"{where}: this alias stands inside of what it refers to"


def test_aliases_of_aliases_do_not_explode():
    levels = [f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 10)}]" for level in range(1, 12)]
    with pytest.raises(SpaceError) as caught:
        yaml12.parse("\n".join(["l0: &l0 1", *levels]), "x.yaml")
    assert str(caught.value) == "x.yaml:6: more than 100000 values, those of aliases counted each time"


@pytest.mark.parametrize("depth", [101, 100_000])
def test_a_document_that_is_too_deep_is_refused(depth):
    with pytest.raises(SpaceError) as caught:
        yaml12.parse("\n" + "[" * depth + "]" * depth, "x.yaml")
    assert str(caught.value) == "x.yaml:2: more than 100 mappings and lists in one another"
    assert yaml12.scalar("[" * 100 + "1" + "]" * 100)


def test_a_key_knows_its_line_and_a_missing_one_that_of_its_parent():
    document = yaml12.parse("a:\n  b: 1\nc:\n- x\n- y\n", "x.yaml")
    assert document.where(("a", "b")) == "x.yaml:2"
    assert document.where(("a", "missing")) == "x.yaml:1"
    assert document.where(("c", 1)) == "x.yaml:5"


def test_dotted_names_a_path_as_people_write_it():
    assert yaml12.dotted(("baselines", 0, "model.depth")) == "baselines[0].model.depth"


ODD = [
    "1e5",
    "on",
    "no",
    "null",
    "~",
    "",
    "1:30",
    "0x1f",
    "1_000",
    ".5",
    "a: b",
    "#x",
    "- a",
    " a ",
    "a\nb",
    "\x1b\x85",
    "é😀",
    "x" * 300,
]


@pytest.mark.parametrize("text", ODD)
def test_text_is_written_so_that_it_is_read_back_as_the_same(text):
    value = {"a": text, "b": {"c": [text, 1]}}
    assert yaml12.parse(yaml12.dump(value), "f").value == value


def test_numbers_and_lists_are_read_back_as_the_same():
    value = {
        "a": 1e-05,
        "b": 0.1 + 0.2,
        "c": [],
        "d": [1, 2.0, True, None],
        "e": float("inf"),
        "f": -3,
        "g": {"h": 1e300},
    }
    written = yaml12.dump(value)
    assert yaml12.parse(written, "f").value == value
    assert "\nd: [1, 2.0, true, null]\n" in written
