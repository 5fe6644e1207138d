"""The documentation says what is there: its tables are held against the code and the tests."""

import ast
import re
from pathlib import Path

import pytest

from vqvae.conversion import fields

ROOT = Path(__file__).parents[1]
TRAINER = ROOT / "docs" / "trainer.md"
STUDY = ROOT / "docs" / "study.md"


def rows(path):
    """The cells of every row of the tables whose first column is a feature or a guarantee."""
    found, listed = [], False
    for line in path.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("|"):
            listed = False
        elif cells[0] in ("feature", "guarantee"):
            listed = True
        elif listed and not line.startswith("| ---"):
            found.append(cells)
    return found


def functions(path):
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


TESTS = {f"{path.name}::{name}" for path in sorted((ROOT / "tests").rglob("test_*.py")) for name in functions(path)}


@pytest.mark.parametrize("row", rows(TRAINER), ids=lambda row: row[0])
def test_a_feature_of_the_trainer_has_its_key_its_reference_and_its_test(row):
    feature, key, reference, proof = row
    assert feature
    assert reference
    keys = re.findall(r"`([\w.]+)(?::[^`]*)?`", key)
    assert keys or key == "-"
    assert set(keys) <= set(fields()), "keys that no config has"
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", proof)
    assert named, "no test is named"
    assert {f"{file}::{name}" for file, name in named} <= TESTS, "tests that do not exist"


@pytest.mark.parametrize("row", rows(STUDY), ids=lambda row: row[0])
def test_a_guarantee_of_the_study_has_its_test(row):
    guarantee, how, proof = row
    assert guarantee
    assert how
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", proof)
    assert named, "no test is named"
    assert {f"{file}::{name}" for file, name in named} <= TESTS, "tests that do not exist"


def test_every_field_of_the_trainer_is_in_its_table():
    keys = {key for row in rows(TRAINER) for key in re.findall(r"`([\w.]+)(?::[^`]*)?`", row[1])}
    assert set(fields()) - keys == set()


def test_the_example_report_is_small_and_names_no_machine():
    folder = ROOT / "docs" / "example-report"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 5e6
    text = (folder / "README.md").read_text()
    assert not re.search(r"/(tmp|home|root|work|Users)/", text)
    named = re.findall(r"\]\(([^)]+\.png)\)", text)
    assert named
    assert all((folder / name).is_file() for name in named)
