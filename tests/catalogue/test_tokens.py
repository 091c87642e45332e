"""Signed tokens: nothing but what was signed, for that purpose, in time."""

import multiprocessing
import os
import stat
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.catalogue import tokens
from orrery.core.errors import CorruptionError, StorageError

NOW = datetime(2026, 11, 22, 7, tzinfo=timezone.utc)
KEY = bytes(range(32))
HOUR = timedelta(hours=1)


def test_a_token_says_what_was_signed_until_it_expires():
    token = tokens.sign(KEY, "confirm", [3, "daily", ["données"]], NOW)
    assert tokens.read(KEY, "confirm", f" {token}\n", NOW + HOUR, HOUR) == [3, "daily", ["données"]]
    with pytest.raises(tokens.ExpiredToken, match="1 hour"):
        tokens.read(KEY, "confirm", token, NOW + HOUR + timedelta(seconds=1), HOUR)
    with pytest.raises(tokens.TokenError, match="future"):
        tokens.read(KEY, "confirm", token, NOW - HOUR, HOUR)
    assert set(token) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


def test_another_purpose_or_another_secret_is_refused():
    token = tokens.sign(KEY, "confirm", 3, NOW)
    for key, purpose in ((KEY, "unsubscribe"), (KEY, "confir"), (bytes(32), "confirm"), (KEY, "")):
        with pytest.raises(tokens.TokenError, match="not one of ours"):
            tokens.read(key, purpose, token, NOW, HOUR)


@given(st.integers(0, 200), st.characters())
def test_one_changed_character_is_refused(place, letter):
    token = tokens.sign(KEY, "confirm", [3, "daily"], NOW)
    place %= len(token)
    changed = token[:place] + letter + token[place + 1 :]
    if changed != token:
        with pytest.raises(tokens.TokenError):
            tokens.read(KEY, "confirm", changed, NOW, HOUR)


@given(st.text(max_size=300))
def test_any_text_is_refused_politely(text):
    with pytest.raises(tokens.TokenError):
        tokens.read(KEY, "confirm", text, NOW, HOUR)


def test_the_body_is_not_believed_before_the_seal(monkeypatch):
    monkeypatch.setattr(tokens.json, "loads", lambda text: pytest.fail("the body was parsed"))
    with pytest.raises(tokens.TokenError):
        tokens.read(KEY, "confirm", "WzEsMF0.AAAA", NOW, HOUR)
    with pytest.raises(tokens.TokenError):
        tokens.read(KEY, "confirm", "A" * 100_000, NOW, HOUR)


def test_the_secret_is_made_once_and_kept_private(tmp_path):
    made = tokens.secret(tmp_path)
    path = tmp_path / tokens.FILE
    assert len(made) == 32 and tokens.secret(tmp_path) == made
    assert [item.name for item in tmp_path.iterdir()] == [tokens.FILE]
    if os.name != "nt":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o644)  # as a careless restore leaves it
        tokens.secret(tmp_path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_bytes(made[:-1])
    with pytest.raises(CorruptionError, match="31 bytes"):
        tokens.secret(tmp_path)


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot use the secret"):
        tokens.secret(tmp_path / "file" / "store")


def make(folder, results):
    results.put(tokens.secret(folder))


@pytest.mark.skipif(os.name == "nt", reason="fork")
def test_processes_that_make_it_at_once_share_one(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=make, args=(tmp_path, results)) for _ in range(8)]
    for worker in workers:
        worker.start()
    found = {results.get(timeout=30) for _ in workers}
    for worker in workers:
        worker.join()
    assert found == {tokens.secret(tmp_path)}
    assert [item.name for item in tmp_path.iterdir()] == [tokens.FILE]
