"""The report for a repository."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest
import yaml
from markdown_it import MarkdownIt

from search import findings, markdown, publish
from search.errors import UserError

HOSTILE = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[a](javascript:alert(1))", "![a](http://b/c.png)",
    "# heading", "- item", "1. item", "---", "| cell | cell", "`code` **bold** _it_ ~no~ $x$", "&lt;b&gt; &amp;", "\\*",
    "```", "+ plus", "=", "> quote",
)  # fmt: skip


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def shown(text):
    return Page(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))


@pytest.fixture
def found(ended):
    return findings.read(*ended(), "postgresql://me:secret@db/studies")


def load(found, picture):
    with open(f"{found.root}/{picture.folder}/{picture.name}.png", "rb") as file:
        return file.read()


def test_the_report_shows_pictures_that_lie_beside_it(found, tmp_path):
    file = tmp_path / "my report.md"
    lines = markdown.write([found], file, load)
    assert lines == [f"{file}, with 6 pictures in my report_files"]
    page = shown(file.read_text())
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert sources[0] == "my%20report_files/history.png"
    assert len(sources) == 6
    for source in sources:
        assert (tmp_path / source.replace("%20", " ")).read_bytes().startswith(b"\x89PNG")


def test_the_answer_comes_first(found):
    paragraphs = [line for line in markdown.text([found], "a_files", []).splitlines() if line]
    assert paragraphs[:2] == [publish.MARK, "# shapes: what the search found"]
    assert paragraphs[2].startswith("shapes searched 3 settings")
    assert paragraphs[3].startswith("- Trial 9 won with PSNR 22.05 dB")
    assert "secret" not in "".join(paragraphs)


def test_the_table_has_a_row_for_each_of_the_best_and_the_baseline(found):
    text = markdown.text([found], "a_files", [])
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| \d", line)]
    assert [row[0] for row in rows] == ["9", "8", "7", "6", "5", "0 (baseline)"] * 2
    assert rows[0][1] == "**22.05**"
    assert "PSNR (dB) ↑" in text
    page = shown(text)
    assert [tag for tag, _ in page.tags].count("table") == 3


def test_the_space_file_can_be_taken_from_it(found):
    text = markdown.text([found], "a_files", [])
    code = re.search(r"```yaml\n(.*?)\n```", text, re.S)[1]
    assert yaml.safe_load(code)["search"] == yaml.safe_load(found.yaml)["search"]
    assert "vqsearch launch shapes.yaml" in text


def test_a_report_is_replaced_and_nothing_else(found, tmp_path):
    file = tmp_path / "report.md"
    markdown.write([found], file, load)
    markdown.write([found], file, lambda _found, _picture: None)
    assert not (tmp_path / "report_files" / "worst.png").exists()
    file.write_text("# My project")
    with pytest.raises(UserError, match="is there already and no vqsearch report"):
        markdown.write([found], file, load)
    assert file.read_text() == "# My project"
    (tmp_path / "other_files").mkdir()
    (tmp_path / "other_files" / "mine.txt").write_text("1")
    with pytest.raises(UserError, match="holds files that vqsearch report did not write"):
        markdown.write([found], tmp_path / "other.md", load)
    assert not (tmp_path / "other.md").exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(found, name):
    trials = [
        dataclasses.replace(trial, settings={**trial.settings, name: name}, reason=name, device=name)
        for trial in found.trials
    ]
    odd = dataclasses.replace(found, study=name, trials=trials, yaml=f"study: {name}\n")
    plain = shown(markdown.text([found], "a_files", []))
    page = shown(markdown.text([odd], "a_files", []))
    kept = [tag for tag, _ in page.tags]
    assert set(kept) == {tag for tag, _ in plain.tags}
    assert kept.count("h1") == 1
    assert kept.count("table") == 3
    assert kept.count("ul") == [tag for tag, _ in plain.tags].count("ul")
    words = " ".join("".join(page.words).split())
    assert words.count(name) >= 20


def test_studies_are_compared_first(found):
    other = dataclasses.replace(found, study="second", ranking=found.ranking[1:])
    text = markdown.text([found, other], "a_files", ["history", "worst_2"])
    assert text.splitlines()[3].startswith("shapes has the best trial, 9: PSNR 22.05 dB.")
    assert "## second" in text
    assert "what it makes of them.* second." in text
    assert "| study | trial |" in text


def test_a_study_without_a_complete_trial_is_reported_too(found, tmp_path):
    trials = [
        dataclasses.replace(trial, value=None, curve=(), step=0, state="WAITING", cause="", pictures=())
        for trial in found.trials
    ]
    waiting = dataclasses.replace(found, trials=trials, ranking=[], importances={}, why_no_importances="none")
    markdown.write([waiting], tmp_path / "report.md", load)
    text = (tmp_path / "report.md").read_text()
    assert "Nothing won yet: no trial has been measured." in text
    assert "No trial that keeps the limits is complete." in text
    assert "No trial has been measured yet." in text
    assert "None, besides trials that were stopped at rungs." in text
