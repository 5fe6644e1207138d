import json
import subprocess
import sys
import textwrap

import optuna
import pytest

from search.storage import open_storage


@pytest.fixture
def path(tmp_path):
    """A journal with a study of two trials, cut off in its last line."""
    path = tmp_path / "studies"
    study = optuna.create_study(study_name="a", storage=open_storage(f"journal://{path}"))
    study.ask()
    study.ask()
    path.write_bytes(path.read_bytes()[:-9])
    return path


def test_a_driver_drops_a_line_that_was_cut_off_and_says_so(path):
    lines, told = path.read_bytes().splitlines(keepends=True), []
    storage = open_storage(f"journal://{path}", tell=told.append)
    assert told == [f"journal://{path}: dropped {len(lines[-1])} bytes of a write that never ended"]
    assert path.read_bytes() == b"".join(lines[:-1])
    optuna.load_study(study_name="a", storage=storage).ask()
    assert [json.loads(line)["op_code"] for line in path.read_bytes().splitlines()] == [0, 4, 4]


def test_a_journal_cut_off_in_its_first_line_begins_anew(tmp_path):
    (tmp_path / "a").write_bytes(b'{"op_co')
    optuna.create_study(study_name="a", storage=open_storage(f"journal://{tmp_path}/a"))
    assert [s.study_name for s in open_storage(f"journal://{tmp_path}/a").get_all_studies()] == ["a"]


def test_a_reader_passes_over_a_line_that_was_cut_off(path):
    before = path.read_bytes()
    study = optuna.load_study(study_name="a", storage=open_storage(f"journal://{path}", create=False))
    assert len(study.trials) == 1
    assert path.read_bytes() == before


def test_a_line_cut_off_while_a_journal_is_open_is_dropped_before_the_next_write(path):
    told = []
    study = optuna.load_study(study_name="a", storage=open_storage(f"journal://{path}", tell=told.append))
    with path.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"' + b"x" * 200_000)
    assert study.ask().number == 1
    assert [line.rpartition(": ")[2] for line in told[1:]] == ["dropped 200026 bytes of a write that never ended"]
    assert len(open_storage(f"journal://{path}").get_all_trials(0)) == 2


def test_a_journal_that_is_gone_is_not_begun_anew(path):
    study = optuna.load_study(study_name="a", storage=open_storage(f"journal://{path}"))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        study.ask()
    assert not path.exists()
    assert not path.with_name("studies.lock").is_symlink()


def test_writers_at_work_lose_nothing_while_others_open_the_journal(path):
    script = textwrap.dedent(f"""
        import optuna
        from search.storage import open_storage
        for _ in range(8):
            study = optuna.load_study(study_name="a", storage=open_storage("journal://{path}"))
            for _ in range(5):
                study.ask()
    """)
    writers = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0] * 3
    assert len(open_storage(f"journal://{path}").get_all_trials(0)) == 1 + 3 * 8 * 5
