"""The JSON API: what it says, what it refuses, and what a fuzzer makes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from orrery.catalogue.store import Store
from orrery.web.app import create_app
from orrery.web.settings import Limits, Settings
from web.support import BASE

API = "/api/v1"


def test_search(reading: TestClient) -> None:
    found = reading.get(f"{API}/search", params={"q": "earth mover distance"}).json()
    assert found["papers"][0]["slug"] == "emo" and found["total"] >= 1 and found["seconds"] < 5
    scores = [paper["score"] for paper in found["papers"]]
    assert scores == sorted(scores, reverse=True)
    both = [reading.get(f"{API}/search", params={"q": "language", "limit": 5, "offset": start}).json()["papers"] for start in (0, 5)]
    assert len(both[0]) == 5 and not {p["slug"] for p in both[0]} & {p["slug"] for p in both[1]}
    assert all(paper["year"] == 2026 for paper in reading.get(f"{API}/search", params={"year": 2026}).json()["papers"])


def test_papers_days_topics(reading: TestClient) -> None:
    paper = reading.get(f"{API}/papers/2601.00001v2").json()
    assert paper["title"].startswith("A Measured Paper on <b>") and paper["upvotes"] == 12 and paper["status"]["state"] in ("reading", "planned")
    assert len(reading.get(f"{API}/papers/emo/related?limit=3").json()["papers"]) == 3
    day = reading.get(f"{API}/days/2026-01-02").json()
    assert [paper["arxiv"] for paper in day["papers"]] == ["2601.00001"] and day["date"] == "2026-01-02"
    assert {"date": "2026-01-02", "count": 1} in reading.get(f"{API}/days").json()
    assert reading.get(f"{API}/today").json()["papers"]
    assert reading.get(f"{API}/trending?limit=7").json()["papers"][0]["upvotes"] == 12
    topics = reading.get(f"{API}/topics").json()
    page = reading.get(f"{API}/topics/recurrence?limit=2").json()
    assert page["topic"] in topics and len(page["papers"]) == 2
    assert reading.get(f"{API}/stats").json()["shipped"] == 162


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/papers/emoo", 404, "emo"),
        ("/days/2026-02-30", 422, "no day"),
        ("/days/tomorrow", 422, "date"),
        ("/topics/none", 404, "none"),
        ("/nothing", 404, "nothing"),
        ("/search?limit=0", 422, "limit"),
        ("/search?kind=song", 422, "kind"),
        ("/search?offset=-1", 422, "offset"),
        ("/search?topic=none", 404, "none"),
    ],
)
def test_errors_are_sentences(reading: TestClient, path: str, status: int, words: str) -> None:
    answer = reading.get(API + path)
    assert answer.status_code == status and words in answer.json()["error"] and answer.json()["error"].endswith((".", "?"))


def test_changes(client: TestClient, store: Store) -> None:
    sign = {"x-orrery": "test"}
    assert client.post(f"{API}/papers/emo/vote", headers=sign).json() == {"slug": "emo", "votes": 1, "voted": True}
    assert client.get(f"{API}/papers/emo").json()["votes"] == 1
    assert client.delete(f"{API}/papers/emo/vote", headers=sign).json()["votes"] == 0
    assert client.post(f"{API}/papers/nobody/vote", headers=sign).status_code == 404
    answer = client.post(f"{API}/submissions", headers=sign, json={"title": "By Program", "url": "https://example.org/p"}).json()
    assert answer["state"] == "accepted" and store.paper(answer["paper"]).title == "By Program"
    for body in ({}, {"titel": "x"}, {"text": "neither id nor entry"}, {"title": "x", "year": 12}, [], "x"):
        assert client.post(f"{API}/submissions", headers=sign, json=body).status_code == 422, body
    assert client.post(f"{API}/submissions", headers={**sign, "content-type": "application/json"}, content="{").status_code == 422


def test_the_description_is_whole(reading: TestClient) -> None:
    schema = reading.get(f"{API}/openapi.json").json()
    assert schema["openapi"].startswith("3.") and len(schema["paths"]) >= 11
    page = reading.get("/api").text
    for path in schema["paths"]:
        assert path.replace("{", "{") in page
    assert "http" not in json.dumps(schema["paths"]).replace("https://", "")
    assert reading.get("/docs").status_code == reading.get("/redoc").status_code == 404


def test_fuzz(template: Path, tmp_path: Path) -> None:
    """Schemathesis asks every operation with data that fits its description and data that does not."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    shutil.copytree(template, tmp_path / "papers")
    limits = Limits(changes=(10_000, 1.0), submissions=(10_000, 1.0))
    with Store.open(tmp_path / "papers") as store:
        app = create_app(store, Settings(hosts=("testserver", "localhost"), limits=limits))
        with TestClient(app, base_url=BASE):
            schema = schemathesis.openapi.from_asgi(f"{API}/openapi.json", app)
            seen = {one.ok().label: statuses(one.ok()) for one in schema.get_all_operations()}
    assert len(seen) >= 13 and all(seen.values())
    assert {status // 100 for found in seen.values() for status in found} == {2, 4}


def statuses(operation: Any) -> list[int]:
    """Ask one operation; every answer must be what the description says. The statuses seen."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi import checks

    asked = [not_a_server_error, checks.status_code_conformance, checks.content_type_conformance, checks.response_schema_conformance,
             checks.negative_data_rejection]  # fmt: skip
    kinds = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    found: list[int] = []

    @settings(max_examples=8, derandomize=True, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(case=st.one_of(*(operation.as_strategy(generation_mode=kind) for kind in kinds)))
    def ask(case: Any) -> None:
        found.append(case.call_and_validate(checks=asked).status_code)

    ask()
    return found
