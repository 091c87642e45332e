"""Readers, votes, picks, submissions, signing in: who may, how often, and what is left after a rebuild."""

from datetime import timedelta

import pytest

from catalogue import people
from catalogue.people import NOW, URL, Outbox
from orrery.catalogue import community, subscriptions, tokens
from orrery.core.errors import ConfigError, DataError, UnknownNameError

MINUTE = timedelta(minutes=1)


@pytest.fixture
def store(tmp_path, monkeypatch):
    yield from people.open_store(tmp_path, monkeypatch)


def enter(store, email, at=NOW):
    box = Outbox()
    community.request_sign_in(store, email, URL, box, at=at)
    return community.sign_in(store, box.token(), at=at + MINUTE)


def tables(store):
    names = ("readers", "votes", "submissions", "picks", "subscriptions", "deliveries", "papers", "meta")
    ask = store.connection().execute
    return {name: [tuple(row) for row in ask(f"SELECT * FROM {name} ORDER BY 1, 2") if row[0] != "journal_seq"] for name in names}


def test_the_owner_works_at_once(store):
    assert community.vote(store, "arXiv:2301.00001v2") == 1
    assert community.vote(store, "planetary-attention") == 1, "one vote a reader"
    assert community.pick(store, "10.1000/moon") == [community.reader(store).name]
    assert store.paper("lunar-recurrence").curated and store.paper("planetary-attention").votes == 1
    assert community.voted(store, 1) == {"planetary-attention"}
    assert community.unvote(store, "planetary-attention") == 0 == community.unvote(store, "planetary-attention")
    assert community.pick(store, "lunar-recurrence", remove=True) == [] and not store.paper("lunar-recurrence").curated
    with pytest.raises(UnknownNameError, match="planetary-attention"):
        community.vote(store, "planetary-atention")


def test_a_mailed_link_signs_in_once(store):
    box = Outbox()
    community.request_sign_in(store, "Ada@Example.org", URL, box, at=NOW)
    (letter,) = box.letters
    assert letter["To"].addresses[0].addr_spec == "Ada@example.org"
    assert f"{URL}{community.SIGN_IN_PATH}?token=" in letter.get_body(("html",)).get_content()
    ada = community.sign_in(store, box.token(), at=NOW + MINUTE)
    assert (ada.role, ada.email) == ("reader", "Ada@example.org")
    with pytest.raises(tokens.TokenError, match="used before"):
        community.sign_in(store, box.token(), at=NOW + MINUTE)
    assert enter(store, "ada@example.org", NOW + timedelta(days=1)).id == ada.id, "one reader, however it is spelt"
    community.request_sign_in(store, "bob@example.org", URL, box, at=NOW)
    with pytest.raises(tokens.ExpiredToken, match="30 minutes"):
        community.sign_in(store, box.token(), at=NOW + 31 * MINUTE)
    confirming = tokens.sign(tokens.secret(store.folder), subscriptions.CONFIRM, ["bob@example.org", "x"], NOW)
    with pytest.raises(tokens.TokenError, match="not one of ours"):
        community.sign_in(store, confirming, at=NOW)
    assert len(community.readers(store)) == 2


def test_a_mailbox_is_one_reader_and_is_not_filled_by_strangers(store):
    enter(store, "ada@example.org")
    with pytest.raises(community.NotAllowed, match="another spelling"):
        enter(store, "ada+2@example.org")
    box = Outbox()
    community.request_sign_in(store, "ada+0@example.org", URL, box, at=NOW + MINUTE)
    for n in range(1, 3):  # with the two of before that was the third
        with pytest.raises(subscriptions.TooMany, match="several times"):
            community.request_sign_in(store, f"ada+{n}@example.org", URL, box, at=NOW + MINUTE)
    assert len(box.letters) == 1
    community.request_sign_in(store, "ada@example.org", URL, box, at=NOW + timedelta(hours=2))
    assert len(box.letters) == 2


def test_new_readers_of_one_domain_are_limited(store, monkeypatch):
    monkeypatch.setattr(community, "READERS_PER_DAY", 2)
    for name in "ab":
        enter(store, f"{name}@farm.example")
    with pytest.raises(subscriptions.TooMany, match=r"farm\.example"):
        enter(store, "c@farm.example")
    enter(store, "c@sub.farm.example.org")
    enter(store, "a@farm.example", NOW + timedelta(hours=3))  # who is known may come back


def test_votes_of_a_day_are_limited_and_roles_hold(store, monkeypatch):
    ada = enter(store, "ada@example.org").id
    monkeypatch.setattr(community, "VOTES_PER_DAY", 4)
    for _ in range(2):
        community.vote(store, "planetary-attention", ada)
        community.unvote(store, "planetary-attention", ada)
    with pytest.raises(subscriptions.TooMany, match="4 votes a day"):
        community.vote(store, "planetary-attention", ada)
    with pytest.raises(community.NotAllowed, match="only curators"):
        community.pick(store, "planetary-attention", ada)
    assert community.set_role(store, "ada@example.org", "curator").curates
    assert community.set_name(store, ada, "Ada\r\nLovelace").name == "Ada Lovelace"
    assert community.pick(store, "planetary-attention", ada) == ["Ada Lovelace"]
    community.set_role(store, ada, "blocked")
    for act in (community.vote, community.unvote, community.pick):
        with pytest.raises(community.NotAllowed):
            act(store, "planetary-attention", ada)
    with pytest.raises(community.NotAllowed, match="nothing else"):
        community.submit(store, "2301.00009", ada)
    for wrong in (("owner", 1), ("king", 1)):
        with pytest.raises(ConfigError):
            community.set_role(store, ada, *wrong)
    with pytest.raises(community.NotAllowed, match="only the owner"):
        community.set_role(store, ada, "reader", by=ada)
    with pytest.raises(community.NotAllowed, match="stays"):
        community.set_role(store, 1, "reader")
    with pytest.raises(UnknownNameError):
        community.vote(store, "planetary-attention", 99)


def test_submissions_wait_for_a_moderator(store, monkeypatch):
    ada = enter(store, "ada@example.org").id
    first = community.submit(store, {"title": "Comets", "url": "https://example.org/c", "sentence": "not theirs to say", "shipped": True}, ada)
    assert (first.state, first.paper) == ("waiting", None) and set(first.fields) == {"title", "url"}
    assert community.submit(store, {"title": "Comets", "url": "https://example.org/c"}, ada).id == first.id
    with pytest.raises(community.NotAllowed):
        community.moderate(store, first.id, True, reader=ada)
    accepted = community.moderate(store, first.id, True, "thank\nyou")
    assert (accepted.state, accepted.paper, accepted.note) == ("accepted", "comets", "thank you")
    assert store.paper("comets").source == f"submission {first.id}" and store.count() == 4
    with pytest.raises(ConfigError, match="accepted already"):
        community.moderate(store, first.id, False)
    again = community.submit(store, {"title": "COMETS!", "url": "https://example.org/d"}, ada)
    assert (again.id, again.paper, again.state) == (0, "comets", "accepted")
    second = community.submit(store, "https://arxiv.org/abs/2301.00009v3", ada)
    assert second.fields == {"arxiv": "2301.00009"}
    with pytest.raises(ConfigError, match=r"names only arXiv 2301\.00009"):
        community.moderate(store, second.id, True)
    assert community.moderate(store, second.id, True, fields={"title": "Meteors"}).paper == "meteors"
    assert store.paper("2301.00009").title == "Meteors"
    third = community.submit(store, {"title": "Asteroids", "doi": "10.1000/rock"}, ada)
    assert community.moderate(store, third.id, False, "off topic").state == "declined" and store.count() == 5
    assert [s.state for s in community.submissions(store)] == ["accepted", "accepted", "declined"]
    monkeypatch.setattr(community, "WAITING", 1)
    community.submit(store, "2301.00010", ada)
    with pytest.raises(subscriptions.TooMany, match="1 of your submissions"):
        community.submit(store, "2301.00011", ada)
    assert community.submit(store, {"title": "Planets", "url": "https://example.org/p"}).state == "accepted", "the owner's need not wait"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("a title alone", "neither an arXiv id nor BibTeX"),
        ("", "neither"),
        ({"title": "No place"}, "names no place"),
        ({}, "title"),
        ({"title": "x", "url": "javascript:alert(1)"}, "neither http nor https"),
        ({"title": "x" * 2000, "url": "https://example.org"}, "limit"),
        ({"title": "x", "url": "https://example.org", "year": "soon"}, "year"),
    ],
)
def test_what_cannot_be_submitted(store, what, words):
    with pytest.raises(DataError, match=words):
        community.submit(store, what)
    assert not community.submissions(store)


def test_everything_is_there_after_a_rebuild(store):
    ada = enter(store, "ada@example.org").id
    community.vote(store, "planetary-attention", ada)
    community.pick(store, "lunar-recurrence")
    community.moderate(store, community.submit(store, {"title": "Comets", "doi": "10.1000/c"}, ada).id, True)
    box = Outbox()
    subscriptions.subscribe(store, "ada@example.org", "weekly", [], URL, box, at=NOW)
    subscriptions.confirm(store, box.token(), at=NOW)
    before = tables(store)
    store.rebuild("test")
    assert tables(store) == before
    with pytest.raises(tokens.TokenError):
        subscriptions.confirm(store, "nonsense")
