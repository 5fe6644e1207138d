import os

import pytest

from search import credentials


@pytest.fixture
def nothing(monkeypatch, tmp_path):
    """A home without a token."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_token_is_found_where_ray_looks_for_one(nothing, monkeypatch):
    assert not credentials.found()
    (nothing / ".ray").mkdir()
    (nothing / ".ray" / "auth_token").write_text("\n")
    assert not credentials.found()
    (nothing / ".ray" / "auth_token").write_text("secret\n")
    assert credentials.found()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(nothing / "away"))
    assert not credentials.found()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert credentials.found()


def test_every_ray_of_our_own_has_another_token_and_leaves_none_behind(nothing):
    tokens = set()
    for _ in range(2):
        with credentials.fresh():
            tokens.add(os.environ["RAY_AUTH_TOKEN"])
            assert os.environ["RAY_AUTH_MODE"] == "token"
        assert "RAY_AUTH_TOKEN" not in os.environ
        assert "RAY_AUTH_MODE" not in os.environ
    assert len(tokens) == 2
    assert list(nothing.iterdir()) == []
