"""`orrery papers` as typed: one journey from an empty folder to a digest in the mailbox, and every mistake as one sentence."""

import contextlib
import email
import email.policy
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from orrery import cli
from orrery.catalogue import fetch

PLANETS = "We present attention by planets, whose heads move on ellipses around the words that they attend to. They return every year."
LISTING = f"""Planetary Attention for Tests
{PLANETS}
Mamba: Linear-Time Sequence Modeling with Selective State Spaces
Foundation models are almost universally based on the Transformer architecture; we make it selective. It is linear in time.
Planetary attention for tests!
{PLANETS}
"""
BIBTEX = "@article{moon, title = {Lunar Recurrence}, author = {Ada Byron and Bo Li}, year = 2024, doi = {10.1000/moon}}\n"
ATOM = """<?xml version="1.0"?><feed xmlns="http://www.w3.org/2005/Atom"><entry><id>http://arxiv.org/abs/2401.99999v1</id>
<published>2024-01-30T00:00:00Z</published><title>Comets as Memory</title><summary>Memory that comes back.</summary>
<author><name>Edmond H.</name></author></entry></feed>"""


def run(*arguments, code=0, stdin="", store=None):
    """The command in this process, as `main` runs it: (standard output, standard error)."""
    argv, here = sys.argv, sys.stdin
    sys.argv = ["orrery", "papers", *map(str, arguments), *(["--store", str(store)] if store else [])]
    sys.stdin = io.StringIO(stdin)
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        sys.argv, sys.stdin = argv, here
    assert ended.value.code == code, (arguments, out.getvalue()[-500:], err.getvalue()[-2000:])
    return out.getvalue(), err.getvalue()


def read(*arguments, **options):
    return json.loads(run(*arguments, "--json", **options)[0])


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("papers")
    run("stats", store=folder)
    return folder


def letters(box):
    return [email.message_from_bytes(file.read_bytes(), policy=email.policy.default) for file in sorted(Path(box).iterdir())]


def test_the_whole_journey(tmp_path, monkeypatch):
    """Import, find, read, vote, submit, moderate, pick, subscribe, confirm, get a digest, leave; then lose the database."""
    monkeypatch.setenv("ORRERY_PAPERS", str(tmp_path / "store"))
    monkeypatch.setenv("ORRERY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "listing.txt").write_text(LISTING)
    (tmp_path / "refs.bib").write_text(BIBTEX + "@article{broken, title = {No end\n")
    before = read("stats")["papers"]
    report = read("import", tmp_path / "listing.txt", tmp_path / "refs.bib")
    assert len(report["added"]) >= 2 and len(report["duplicates"]) == 1 and report["refused"][0]["line"] == 2
    assert read("import", tmp_path / "listing.txt")["added"] == [], "importing twice changes nothing"
    out, err = run("import", tmp_path / "listing.txt", tmp_path / "refs.bib")
    assert "named twice: Planetary attention for tests!" in out and "refs.bib:2:" in err

    found = read("search", "planetary", "attention")
    assert isinstance(found, list) and found[0]["title"] == "Planetary Attention for Tests" and found[0]["score"] > 0
    slug = found[0]["slug"]
    assert "Planetary Attention" in run("search", "planetary attention")[0]
    shown = read("show", "10.1000/moon")
    assert shown["authors"] == ["Ada Byron", "Bo Li"] and shown["status"]["state"] and isinstance(shown["related"], list)
    assert "Lunar Recurrence" in run("show", "lunar-recurrence")[0]
    assert slug in {paper["slug"] for paper in read("today")["papers"]}

    assert read("vote", slug) == {"slug": slug, "title": "Planetary Attention for Tests", "votes": 1}
    assert read("trending", "-n", "3")[0]["slug"] == slug
    assert read("unvote", slug)["votes"] == 0 and read("vote", slug)["votes"] == 1
    run("readers", "owner", "--name", "Edmond")
    assert read("pick", slug)["picked_by"] == ["Edmond"]
    waiting = read("submit", "2401.99999")
    assert waiting["state"] == "waiting" and [s["id"] for s in read("moderate")] == [waiting["id"]]
    accepted = read("moderate", waiting["id"], "accept", "--title", "Comets as Memory")
    assert accepted["paper"] == "comets-as-memory" and read("moderate") == []
    assert read("submit", "-", stdin="@misc{x, title={Tides}, url={https://example.org/t}}")["state"] == "accepted"

    box = tmp_path / "box"
    asked = read("subscribe", "ada@example.org", "--daily", "--mailbox", box, "--base-url", "https://papers.example.org")
    assert asked["state"] == "pending"
    link = re.search(r"https://papers\S+token=\S+", letters(box)[0].get_body(("plain",)).get_content())[0]
    assert read("digest", "--daily", "--dry-run")["sent"] == []
    assert read("confirm", link)["state"] == "active" and read("subscriptions")[0]["email"] == "ada@example.org"
    assert read("digest", "--daily", "--dry-run")["sent"] == ["ada@example.org"]
    assert "1 digest sent" in run("digest", "--daily", "--mailbox", box)[0]
    assert read("digest", "--daily", "--mailbox", box)["already"] == ["ada@example.org"]
    digests = [letter for letter in letters(box) if letter["List-Unsubscribe"]]
    assert len(digests) == 1 and "Planetary Attention for Tests" in digests[0].get_body(("html",)).get_content()
    assert read("unsubscribe", digests[0]["List-Unsubscribe"].strip("<>"))["state"] == "ended"

    stats = read("stats")
    assert stats["papers"] == before + 5 and stats["votes"] == 1 and stats["picks"] == 1
    exported = json.loads(run("export", "--format", "csl", slug, "lunar-recurrence")[0])
    assert [item["title"] for item in exported] == ["Planetary Attention for Tests", "Lunar Recurrence"]
    for form in ("bibtex", "citation", "csv", "json", "atom"):
        run("export", "--format", form, "--out", tmp_path / f"out.{form}")
        assert (tmp_path / f"out.{form}").stat().st_size > 1000
    (tmp_path / "store" / "papers.sqlite").write_bytes(b"not a database")
    assert read("stats") == stats, "rebuilt from the shipped list and the journal"
    assert read("rebuild")["papers"] == stats["papers"] and read("mend")["problems"] == []


def test_fetching_from_a_server_of_ours(tmp_path, monkeypatch):
    """arXiv's shape, imported; the answer is kept, so that the second time nobody is asked."""
    from catalogue.test_fetch import serving

    monkeypatch.setenv("ORRERY_CACHE", str(tmp_path / "cache"))
    body = ATOM.encode()
    with serving((200, {"Content-Length": str(len(body))}, body, 0.0)) as server:
        base = f"http://127.0.0.1:{server.server_port}/api/query"
        report = read("fetch", "2401.99999", "--base", base, store=tmp_path / "store")
        assert [entry["title"] for entry in report["added"]] == ["Comets as Memory"]
        assert read("fetch", "2401.99999", "--base", base, store=tmp_path / "store")["added"] == [] and len(server.asked) == 1
        assert read("show", "2401.99999", store=tmp_path / "store")["abstract"] == "Memory that comes back."
        api = f"http://127.0.0.1:{server.server_port}/api"
        monkeypatch.setattr(fetch, "hugging_face_service", lambda base: fetch.Service("Hugging Face", base, 0.0, 3600.0))
        found = read("fetch", "--day", "2024-06-03", "--base", api, store=tmp_path / "store")["added"]
        assert read("show", found[0]["slug"], store=tmp_path / "store")["upvotes"] == 60
        monkeypatch.setattr(fetch, "arxiv_service", lambda base: fetch.Service("arXiv", base, 0.0, 86400.0))
        assert read("fetch", "--missing", "--base", base, store=tmp_path / "store")["refused"] == []
        asked = {each for _, path, _ in server.asked for each in parse_qs(urlsplit(path).query).get("id_list", [""])[0].split(",")}
        assert {"2405.21060", "2310.04691"} <= asked, "papers that have an id and no abstract"
        assert read("submit", "2401.99999", "--fetch", "--base", base, store=tmp_path / "other")["paper"] == "comets-as-memory"


def test_digests_through_a_mail_server(tmp_path, monkeypatch):
    """What a scheduler runs: exit code 1 while something is left, 0 when all is sent; the password comes from a file."""
    from catalogue import smtp

    pem, context = smtp.certificate(tmp_path)
    (tmp_path / "password").write_text("moon\n")
    monkeypatch.setenv("ORRERY_PAPERS", str(tmp_path / "store"))
    keeper = smtp.Keeper(later={"bo@example.org"})
    with smtp.serving(keeper, tls_context=context, require_starttls=True, authenticator=smtp.passwords, auth_required=True) as server:
        account = ("--user", "papers", "--password-file", tmp_path / "password", "--cafile", pem, "--from", "Papers <papers@example.org>")
        options = ("--smtp", f"127.0.0.1:{server.port}", *account)
        for address in ("ada@example.org", "bo@example.org"):
            run("subscribe", address, "--weekly", "--mailbox", tmp_path / "box")
        for letter in letters(tmp_path / "box"):
            run("confirm", re.search(r"token=(\S+)", letter.get_body(("plain",)).get_content())[1])
        report = read("digest", "--weekly", *options, code=1)
        assert report["sent"] == ["ada@example.org"] and "greylisted" in report["later"][0]["why"]
        keeper.later.clear()
        assert "1 digest sent" in run("digest", "--weekly", *options)[0]
        assert "0 digests sent" in run("digest", "--weekly", *options)[0]
        (tmp_path / "password").write_text("sun\n")
        run("import", "-", stdin=BIBTEX)
        assert "refuses the user 'papers'" in run("subscribe", "cy@example.org", *options, code=2)[1]
    assert sorted(keeper.receivers) == ["ada@example.org", "bo@example.org"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("show", "mamba-22"), "no paper"),
        (("vote", "9999.99999"), "no paper"),
        (("search", "x", "--mode", "magic"), "hybrid"),
        (("search", "x", "--kind", "novel"), "novel"),
        (("topics", "recurence"), "'recurrence'"),
        (("today", "--date", "yesterday"), "no day"),
        (("import", "nowhere.txt"), "nowhere.txt"),
        (("export", "--format", "bibtx"), "'bibtex'"),
        (("export", "no-such-paper"), "no paper"),
        (("submit",), "say which paper"),
        (("submit", "hello"), "neither an arXiv id nor BibTeX"),
        (("moderate", "7", "accept"), "no submission 7"),
        (("moderate", "7"), "accept or decline"),
        (("subscribe", "nobody"), "no mail address"),
        (("subscribe", "a@example.org", "--daily", "--weekly"), "not both"),
        (("subscribe", "a@example.org", "--topic", "cooking"), "unknown topic"),
        (("confirm", "x"), "not one of ours"),
        (("unsubscribe", "a@example.org"), "no subscription"),
        (("digest",), "--daily or --weekly"),
        (("digest", "--daily"), "say where mails go"),
        (("digest", "--daily", "--smtp", "mail.example.org:x"), "no port"),
        (("digest", "--daily", "--smtp", "mail.example.org", "--user", "papers"), "never an argument"),
        (("digest", "--daily", "--mailbox", "box", "--from", "nobody"), "no mail address"),
        (("fetch",), "say what to ask for"),
        (("fetch", "hello"), "no arXiv id"),
        (("fetch", "2401.99999", "--base", "http://example.org"), "no https address"),
        (("fetch", "--day", "soon"), "2026-11-20"),
        (("readers", "nobody@example.org"), "no reader"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_two(shelf, arguments, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ORRERY_SMTP_PASSWORD", raising=False)
    out, err = run(*arguments, code=2, store=shelf)
    assert words in err and err.startswith("orrery: ") and err.count("\n") == 1 and not out


def test_every_command_has_help_with_an_example_and_json():
    from orrery.cli.papers import app

    names = [command.name for command in app.registered_commands]
    promised = "search show today trending import export submit vote unvote stats digest subscribe unsubscribe"
    assert {*promised.split(), "confirm", "moderate", "pick", "topics", "fetch", "rebuild"} <= set(names)
    for name in names:
        text = run(name, "--help")[0]
        assert "Example" in text and "--json" in text and "--store" in text, name


def test_search_starts_at_once_and_imports_no_torch(shelf):
    """A fresh interpreter: what it imports, and how long it takes (least of several runs)."""
    code = "import sys; from orrery.cli import main\ntry:\n    main()\nfinally:\n    print(*sorted(sys.modules), file=sys.stderr)"
    command = [sys.executable, "-c", code, "papers", "search", "earth mover distance", "--json"]
    environment = {**os.environ, "ORRERY_PAPERS": str(shelf)}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
    assert json.loads(found.stdout)[0]["title"]
    heavy = {"torch", "transformers", "numba", "scipy", "fastapi", "jinja2", "smtplib", "urllib.request", "matplotlib"}
    assert not heavy & set(found.stderr.split())


@pytest.mark.alone
def test_a_cold_search_takes_less_than_six_tenths_of_a_second(shelf):
    """Processor seconds, so that another program on the machine does not decide; the least of at most ten runs."""
    command = [sys.executable, "-m", "orrery", "papers", "search", "earth mover distance", "--json"]
    times = []
    while len(times) < 10 and min(times, default=1.0) >= 0.6:
        before, began = os.times(), time.perf_counter()
        subprocess.run(command, capture_output=True, env={**os.environ, "ORRERY_PAPERS": str(shelf)}, timeout=60, check=True)
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        times.append(spent or time.perf_counter() - began)  # the clock's, where the system does not tell
    assert min(times) < 0.6, times
