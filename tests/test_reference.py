"""The generated pages are those of the code, and every command in the documentation exists."""

import dataclasses
import importlib.util
import inspect
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import click
import pytest
from pydantic import BaseModel

from search import schema
from search.cli import cli
from search.study import OPERATIONAL
from vqvae import config as trainer
from vqvae import conversion, weights
from vqvae.config import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_those_of_the_code(reference, capsys):
    assert reference.main(["--check"]) == 0, capsys.readouterr().out


def test_a_stale_page_is_shown_by_its_difference_and_left_as_it_is(reference, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    assert reference.main([]) == 0
    before = (tmp_path / "commands.md").read_text()
    (tmp_path / "commands.md").write_text(before.replace("## launch\n", "## lunch\n"))
    capsys.readouterr()
    assert reference.main(["--check"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[:2] == ["--- docs/commands.md", "+++ the code"]
    assert told[3:] == ["-## lunch", "+## launch", "stale: write them anew with python docs/reference.py"]
    assert "## lunch\n" in (tmp_path / "commands.md").read_text()


def test_a_new_command_or_option_makes_the_page_stale(reference, monkeypatch, capsys):
    @click.command(epilog="vqsearch sing")
    @click.option("--loud", is_flag=True, help="Wake everyone.")
    def sing(loud):
        """Sing a song."""

    monkeypatch.setitem(cli.commands, "sing", sing)
    assert reference.main(["--check"]) == 1
    assert "+| `--loud` | Wake everyone. |" in capsys.readouterr().out.splitlines()


def test_a_new_key_makes_the_page_stale(reference, monkeypatch, capsys):
    monkeypatch.setitem(trainer.METRICS, "val/beauty", "maximize")
    assert reference.main(["--check"]) == 1
    assert "+| `val/beauty` | val/beauty |  | maximize |" in capsys.readouterr().out.splitlines()


class Silent(BaseModel):
    said: int = 1
    """A number."""
    unsaid: int = 2
    alone: float = 3


def test_a_key_without_its_meaning_is_named(reference):
    where = f"{__name__}.Silent"
    with pytest.raises(reference.UndocumentedError) as refused:
        reference.meanings(Silent)
    assert str(refused.value) == f"no line with its meaning follows {where}.unsaid, {where}.alone"


def test_a_command_without_help_is_named(reference, monkeypatch):
    monkeypatch.setitem(cli.commands, "mumble", click.Command("mumble", params=[click.Option(["--low"])]))
    with pytest.raises(reference.UndocumentedError) as refused:
        reference.commands()
    assert str(refused.value) == "no help of the command mumble --low, mumble, mumble, its example"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranged:
    size: int = 8
    share: float = 0.5
    kind: str = "a"
    parts: tuple[int, ...] = ()
    on: bool = True

    def __post_init__(self):
        trainer.require(self.size >= 1, "size", "at least 1", self.size)
        trainer.require(self.size <= 64, "size", "at most 64", self.size)
        trainer.require(0 < self.share < 1, "share", "above 0 and below 1 (size is 8)", self.share)
        trainer.require(self.kind in "ab", "kind", "one of a, b", self.kind)
        trainer.require(all(part > 0 for part in self.parts), "parts", "above 0 each", self.parts)


def test_a_range_is_what_the_config_says_when_it_refuses_a_value(reference):
    assert {name: reference.values(Ranged, name) for name in ("size", "share", "kind", "parts", "on")} == {
        "size": "whole number, at least 1, at most 64",
        "share": "number, above 0 and below 1",
        "kind": "one of a, b",
        "parts": "list of whole numbers, above 0 each",
        "on": "true or false",
    }


def test_a_pipe_in_a_cell_ends_no_cell(reference):
    assert "| `a` | train\\|test |\n" in reference._table(("key", "value"), [("`a`", "train|test")])


def keys(page):
    """Dotted names in the first column of the tables of a page."""
    return re.findall(r"^\| `([\w./]+)` \|", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)


def test_every_field_and_every_key_that_may_change_has_one_row():
    rows = keys("space-file.md")
    for name in (*conversion.fields(), *OPERATIONAL, *schema.File.model_fields):
        both = name in ("seed", "log")  # of the study and of a run; a part of the file and a scale
        assert rows.count(name) == 1 + both, name


@pytest.mark.parametrize("page", ["space-file.md", "commands.md"])
def test_every_link_within_a_page_leads_to_a_heading(page, reference):
    text = (ROOT / "docs" / page).read_text()
    headings = [reference.anchor(heading) for heading in re.findall(r"^## (.*)$", text, flags=re.MULTILINE)]
    assert len(set(headings)) == len(headings)
    assert set(re.findall(r"\(#([^)]*)\)", text)) <= set(headings)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def lines(page):
    """The command lines of `vqsearch` in the blocks of a page, each as its words."""
    for block in re.findall(r"^```(?:console|sh)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = re.match(r"(?:\$ )?(?:exec )?vqsearch (.+)", line)
            if words:
                yield shlex.split(re.split(r"\s[>|&]", words[1])[0], comments=True)


LINES = [(page, words) for page in PAGES for words in lines(page)]


def parsed(name, words):
    command = cli.commands[name]
    context = click.Context(command, info_name=name)
    options, left, _ = command.make_parser(context).parse_args(list(words))
    assert not left, "more words than it takes"
    given = {name for name, value in options.items() if value and isinstance(value, (str, tuple, list))}
    assert {each.name for each in command.params if each.required} <= given, "fewer words than it needs"
    return options


@pytest.mark.parametrize(("page", "words"), LINES, ids=lambda each: each.name if isinstance(each, Path) else each[0])
def test_every_command_line_in_the_documentation_is_one(page, words):
    options = parsed(*words[:1], words[1:])
    fields = conversion.fields()
    for setting in options.get("overrides") or ():
        key = setting.partition("=")[0]
        name = key if words[0] == "train" else key.removeprefix("train.")
        option_of = fields.get(name.rpartition(".")[0])  # keys of these are a plug-in's
        known = name in fields if words[0] == "train" or key != name else key in keys("space-file.md")
        assert known or (inspect.isclass(option_of) and issubclass(option_of, Mapping)), setting
    for path in [word for word in words if word.startswith("spaces/")]:
        assert list(ROOT.glob(path)), path


def test_the_command_lines_are_found():
    found = {(page.name, words[0]) for page, words in LINES}
    assert {("README.md", "launch"), ("first-day.md", "launch"), ("commands.md", "tokenize")} <= found
    assert {words[0] for page, words in LINES if page.name == "commands.md"} == set(cli.commands)


@pytest.mark.parametrize("words", [["launch"], ["launch", "a.yaml", "b"], ["launch", "a.yaml", "--loud"], ["sing"]])
def test_a_wrong_command_line_would_be_seen(words):
    with pytest.raises((AssertionError, KeyError, click.NoSuchOption)):
        parsed(words[0], words[1:])


def test_every_command_that_is_mentioned_exists():
    for page in PAGES:
        for mention in re.findall(r"`vqsearch ([^`]*)`", page.read_text()):
            name, *words = mention.split()
            if name.isupper():
                continue
            options = {flag for each in cli.commands[name].params for flag in each.opts} | {"--help"}
            assert {word for word in words if word.startswith("--")} <= options, mention


def test_the_first_day_shows_the_message_of_missing_weights(monkeypatch):
    monkeypatch.setenv("TORCH_HOME", "/home/me/.cache/torch")
    with pytest.raises(weights.WeightsError) as refused:
        weights.require(TrainConfig())
    page = (ROOT / "docs" / "first-day.md").read_text()
    assert f"\nvqsearch: {refused.value}\n" in page
    assert weights.INCEPTION in page


def test_the_first_day_names_every_suffix_of_a_picture():
    from vqvae.pictures import SUFFIXES

    *most, last = SUFFIXES
    page = " ".join((ROOT / "docs" / "first-day.md").read_text().split())
    assert f"ends in {', '.join(most)} or {last}," in page
