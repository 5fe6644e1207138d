"""Files of a report put where they were asked for."""

import pytest

from search import publish
from search.errors import UserError


def test_files_of_an_earlier_report_go_and_others_stay(tmp_path):
    folder = tmp_path / "new" / "paper"
    publish.write_folder(folder, {"a.txt": b"1", "b.txt": b"2"})
    (folder / "mine.txt").write_text("3")
    publish.write_folder(folder, {"b.txt": b"4"})
    assert {path.name for path in folder.iterdir()} == {"b.txt", "mine.txt", publish.LIST}
    assert (folder / "b.txt").read_bytes() == b"4"


def test_a_list_never_removes_what_lies_elsewhere(tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("1")
    folder = tmp_path / "paper"
    publish.write_folder(folder, {"a.txt": b"1"})
    (folder / publish.LIST).write_text(f"../precious.txt\n{precious}\n..\n.\n\n")
    publish.write_folder(folder, {"a.txt": b"2"})
    assert precious.read_text() == "1"


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError) as error:
        publish.write_folder(tmp_path, {"a.txt": b"1"})
    assert str(error.value) == (
        f"--to {tmp_path}: holds files that vqsearch report did not write; expected a new or empty folder, or one that "
        "a report made"
    )
    with pytest.raises(UserError) as error:
        publish.check_folder(tmp_path / "thesis.tex")
    assert str(error.value) == f"--to {tmp_path}/thesis.tex: is a file; expected a folder"


def test_markdown_that_is_no_report_is_refused(tmp_path):
    publish.check_file(tmp_path / "new.md")
    ours, readme = tmp_path / "ours.md", tmp_path / "README.md"
    ours.write_text(f"{publish.MARK}\n# Report")
    readme.write_text("# My project")
    publish.check_file(ours)
    with pytest.raises(UserError) as error:
        publish.check_file(readme)
    assert str(error.value) == (
        f"--to {readme}: is there already and no vqsearch report; expected a new file, or one of a report"
    )
    with pytest.raises(UserError) as error:
        publish.check_file(tmp_path)
    assert str(error.value) == f"--to {tmp_path}: is a folder; expected a file"


def test_a_file_that_can_not_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="directory"):
        publish.write_file(tmp_path / "file", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
