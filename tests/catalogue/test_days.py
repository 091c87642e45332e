"""Days, archive, NEW, trending and topics."""

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogue import finding
from orrery.catalogue import community, days, filing, topics, trending
from orrery.catalogue.record import Paper
from orrery.catalogue.store import Store
from orrery.core.errors import ConfigError, UnknownNameError

NOW = datetime(2026, 3, 10, 12, tzinfo=timezone.utc)


def test_day(shelf):
    found = days.day(shelf, "2026-03-09")
    assert [paper.slug for paper in found.papers] == [finding.DRUMS, finding.XYLO]  # more upvotes first
    assert found.previous == "2026-03-08" and found.next == "2026-03-10"
    undated = days.day(shelf, "2026-03-10")  # the day on which it entered
    assert [paper.slug for paper in undated.papers] == [finding.NOTE] and undated.next is None
    empty = days.day(shelf, "2026-03-11")
    assert empty.papers == [] and empty.previous == "2026-03-10"
    assert days.day(shelf, "9999-12-31").next is None
    for wrong in ("yesterday", "2026-13-01", ""):
        with pytest.raises(ConfigError):
            days.day(shelf, wrong)


def test_today_and_archive(shelf):
    assert days.today(shelf, NOW).date == "2026-03-10"
    assert days.today(shelf, NOW + timedelta(days=30)).date == "2026-03-10"
    archive = days.archive(shelf)
    assert archive[:3] == [("2026-03-10", 1), ("2026-03-09", 2), ("2026-03-08", 1)]
    assert [day for day, _ in archive] == sorted((day for day, _ in archive), reverse=True)
    for day, count in archive[:6]:
        assert len(days.day(shelf, day).papers) == count


def test_walking_from_day_to_day_meets_the_archive(shelf):
    walked, day = [], days.today(shelf, NOW)
    while day.previous and len(walked) < 8:
        walked.append(day.date)
        day = days.day(shelf, day.previous)
        assert day.next == walked[-1]
    assert walked == [date for date, _ in days.archive(shelf)][: len(walked)]


def test_new():
    paper = Paper(slug="a", title="A", added="2026-03-09T12:00:00Z")
    assert days.is_new(paper, NOW) and not days.is_new(paper, NOW + timedelta(days=3))
    assert days.is_new(paper, NOW, seen="2026-03-09T11:59:59Z") and not days.is_new(paper, NOW, seen=NOW)
    assert not days.is_new(Paper(slug="a", title="A", added="2026-03-09T12:00:00Z", shipped=True), NOW)


ages = st.lists(st.floats(0, 400, allow_nan=False), max_size=6)


@given(ages, st.floats(0, 400), st.integers(0, 500), st.floats(0, 400))
def test_a_further_vote_never_lowers(votes, another, upvotes, published):
    assert trending.score([*votes, another], upvotes, published) >= trending.score(votes, upvotes, published)
    assert trending.score(votes, upvotes + 1, published) >= trending.score(votes, upvotes, published)


@given(ages, st.floats(0, 100), st.integers(0, 500), st.floats(0, 400))
def test_older_is_never_higher_at_equal_votes(votes, later, upvotes, published):
    older = trending.score([age + later for age in votes], upvotes, published + later)
    assert older <= trending.score(votes, upvotes, published) * (1 + 1e-12)


def test_half_life():
    assert trending.score([trending.HALF_LIFE]) == pytest.approx(0.5) and trending.score([-3.0]) == 1
    assert trending.score([], upvotes=99, published=0) == pytest.approx(4.60517, abs=1e-4)


def test_trending_is_the_formula_over_all_papers(shelf):
    """The early end of reading by date leaves no paper out: compared with scoring every paper."""
    everything = {}
    for paper in shelf.all():
        if paper.date:
            age = (NOW - datetime.fromisoformat(paper.date).replace(tzinfo=timezone.utc)).total_seconds() / 86400
            everything[paper.slug] = trending.score([], paper.upvotes, age)
    best = sorted(everything, key=lambda slug: -everything[slug])[:3]
    found = trending.trending(shelf, at=NOW, limit=3)
    assert [paper.slug for paper, _ in found] == best == [finding.DRUMS, finding.KEYS, finding.XYLO]
    assert [score for _, score in found] == pytest.approx([everything[slug] for slug in best])


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 20), st.integers(1, 20))
def test_pages_of_trending(shelf, offset, limit):
    whole = [paper.slug for paper, _ in trending.trending(shelf, at=NOW, limit=40)]
    page = [paper.slug for paper, _ in trending.trending(shelf, at=NOW, limit=limit, offset=offset)]
    assert len(whole) == len(set(whole)) == 40 and page == whole[offset : offset + limit]


def test_votes_lift_a_paper(tmp_path):
    with Store.open(tmp_path) as store:
        store.record("import", {"source": "test", "papers": finding.IMPORTED}, at=finding.AT)
        community.vote(store, finding.NOTE, 1)
        at = datetime.now(timezone.utc)
        (paper, score), *_ = trending.trending(store, at=at, limit=5)
        assert paper.slug == finding.NOTE and score == pytest.approx(1, abs=0.01)
        later = trending.trending(store, at=at + timedelta(days=trending.HALF_LIFE), limit=1)
        assert later[0][1] == pytest.approx(0.5, abs=0.01)


# ---------------------------------------------------------------- topics


def test_remembered_counts_follow_the_papers(tmp_path):
    with Store.open(tmp_path) as store:
        before = {topic.slug: topic.count for topic in topics.topics(store)}
        year = {year.year: year.count for year in topics.topic(store, "graphs").by_year}
        paper = {"title": "A Graph of Graphs", "year": 2025, "date": "2025-01-05", "upvotes": 5000}
        store.record("import", {"source": "test", "papers": [paper]}, at=finding.AT)
        assert {topic.slug: topic.count for topic in topics.topics(store)} == {**before, "graphs": before["graphs"] + 1}
        assert {year.year: year.count for year in topics.topic(store, "graphs").by_year}[2025] == year.get(2025, 0) + 1
        assert trending.trending(store, at=NOW, limit=1)[0][0].slug == "a-graph-of-graphs"


@pytest.mark.parametrize(
    ("title", "slugs"),
    [
        ("Neural Architecture Search of Graph Neural Networks", {"architecture-search", "graphs"}),
        ("Mixture of Experts for Polish Speech", {"experts-routing", "multilingual", "speech-audio"}),
        ("State-space models are recurrent", {"recurrence"}),
        ("A poem", set()),
    ],
)
def test_rules(title, slugs):
    assert set(filing.assign(title)) == slugs


def test_an_abstract_must_speak_of_it_often():
    assert filing.assign("A poem", abstract="A graph. One graph.") == ()
    assert filing.assign("A poem", abstract="A graph. Two graphs. The graph.") == ("graphs",)
    assert filing.assign("A poem", kind="survey") == ("surveys",)


def test_every_shipped_paper_has_a_topic(shelf):
    assert [paper.slug for paper in shelf.all() if paper.shipped and not paper.topics] == []
    counts = {topic.slug: topic.count for topic in topics.topics(shelf)}
    assert list(counts) == list(topics.titles()) and min(counts.values()) >= 1


def test_topic_page_and_trend(shelf):
    page = topics.topic(shelf, "graphs", limit=100)
    assert page.topic.count == len(page.papers) and all("graphs" in paper.topics for paper in page.papers)
    years = [year.year for year in page.by_year]
    assert years == list(range(years[0], years[-1] + 1))
    assert sum(year.count for year in page.by_year) == sum(paper.year is not None for paper in page.papers)
    assert all(0 <= year.share <= 1 for year in page.by_year)
    with pytest.raises(UnknownNameError, match="graphs"):
        topics.topic(shelf, "graph")
