"""The reading list as data: complete, well-formed, and told in words of our own."""

import re

import pytest

from orrery.catalogue import keys, shipped, status
from orrery.catalogue.record import KINDS, Paper
from orrery.core import registry
from orrery.core.errors import CorruptionError

ROOMS = {
    "core", "runs", "ops", "nn", "mixers", "models", "objectives", "optim", "data", "generate", "evaluate", "train", "ngram", "methods",
    "compare", "claims", "catalogue", "web",
}  # fmt: skip


@pytest.fixture(scope="module")
def papers():
    return [Paper(**{name: tuple(value) if isinstance(value, list) else value for name, value in each.items()}) for each in shipped.papers()]


def test_all_162_are_there_once(papers):
    assert len(papers) == 162
    for field in ("slug", "arxiv", "doi"):
        values = [getattr(paper, field) for paper in papers if getattr(paper, field)]
        assert len(values) == len(set(values)), field
    assert len({keys.title_key(paper.title) for paper in papers}) == 162
    assert sum(paper.core for paper in papers) > 100


def test_facts_are_well_formed(papers):
    for paper in papers:
        assert keys.SLUG.fullmatch(paper.slug) and paper.kind in KINDS and paper.title == " ".join(paper.title.split())
        assert paper.rooms and set(paper.rooms) <= ROOMS, paper.slug
        if paper.arxiv:
            assert keys.arxiv_id(paper.arxiv) == paper.arxiv
            assert abs(paper.year - 2000 - int(paper.arxiv[:2])) <= 1, f"{paper.slug}: the year does not fit its arXiv id"
        assert all(re.search(r"\w \S", name) for name in paper.authors), f"{paper.slug}: names are given in full"


def test_sentences_are_one_plain_sentence(papers):
    for paper in papers:
        text = paper.sentence
        assert 20 < len(text) <= 160, f"{paper.slug}: {len(text)} characters"
        assert text[0].isupper() and text[-1] in ".?!", paper.slug
        assert not re.search(r"(?i)\b(we|our|novel|propose[sd]?|state-of-the-art|leverag\w+|remarkabl\w+|comprehensive\w*)\b", text), paper.slug
    assert len({paper.sentence for paper in papers}) == 162


def test_every_name_given_is_registered(papers):
    known = {entry.name for entry in registry.entries()}
    for paper in papers:
        assert set(paper.names) <= known, f"{paper.slug} names {set(paper.names) - known}, which nothing registers"


def test_every_registered_name_of_a_paper_is_found(papers):
    status.forget()
    by_id = {paper.arxiv: paper for paper in papers if paper.arxiv}
    own = [entry for entry in registry.entries() if entry.paper in by_id]
    assert len(own) >= 10, "no registered name carries the id of a shipped paper"
    for entry in own:
        assert entry.name in status.names_of(by_id[entry.paper]), f"{entry.name} is not found from {by_id[entry.paper].slug}"
    found = {name: paper.slug for paper in papers for name in status.names_of(paper)}
    assert found["emo"] == "emo" and found["lightning"] == "transnormer" and found["gtrxl"] == "gtrxl"


def test_surveys_are_no_systems_to_build(papers):
    states = {paper.slug: status.of(paper).state for paper in papers}
    assert states["survey-llm"] == "survey" and states["emo"] == "working model"
    assert {states[paper.slug] for paper in papers if not paper.core and paper.kind == "survey"} == {"survey"}


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    file = tmp_path / "papers.jsonl"
    file.write_text('{"title": "Good"}\n{"title": ""}\n')
    monkeypatch.setattr(shipped, "FILE", file)
    for cached in (shipped._content, shipped.papers):
        cached.cache_clear()
    try:
        with pytest.raises(CorruptionError, match="line 2 of"):
            shipped.papers()
    finally:
        for cached in (shipped._content, shipped.papers):
            cached.cache_clear()
