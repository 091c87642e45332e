"""Status is computed: from the registry, the parity record, measurements and verdicts."""

import json

import pytest

from orrery.catalogue import shipped, status
from orrery.catalogue.record import KINDS, Paper
from orrery.catalogue.store import Store
from orrery.core import registry
from orrery.core.errors import DataError, UnknownNameError


@pytest.fixture(autouse=True)
def fresh():
    status.forget()
    yield
    status.forget()


def paper(**facts):
    return Paper(slug="x", title="X", **facts)


def test_state_follows_what_is_registered():
    assert status.of(paper(kind="architecture", core=True)).state == "planned"
    assert status.of(paper(kind="survey")).state == "survey"
    assert status.of(paper(kind="application")).state == "reading"
    found = status.of(paper(kind="architecture", core=True, names=("mamba2", "no-such-name")))
    assert (found.state, found.names) == ("working model", ("mamba2",))
    assert status.of(paper(kind="adaptation", core=True, names=("mamba2",))).state == "part"
    assert status.of(paper(kind="objective", names=("emo",))).state == "working model"


def test_arxiv_id_alone_finds_the_names():
    found = status.of(paper(arxiv="2405.21060"))
    assert found.state == "working model" and found.names[0] == "mamba2"


def test_parity_is_the_worst_of_the_record(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "PARITY.md").write_text(
        "| mixer | oracle | forward, float64 |\n| --- | --- | --- |\n"
        "| `mamba2` | tests/oracles/mamba2.py | 2.0e-16 | 5e-10 |\n| `mamba2(state=3)` | tests/oracles/mamba2.py | 3.5e-14 | 5e-10 |\n"
        "| `lstm` | tests/oracles/lstm.py | 1.0e-16 | 5e-10 |\n\n| `mamba2` | 70 | 0 | |\n"
    )
    monkeypatch.setattr(status, "_SOURCE", tmp_path)
    parity = status.of(paper(names=("mamba2",))).parity
    assert (parity.forward, parity.checks, parity.failed) == (3.5e-14, 70, 0)
    assert str(parity) == "3.5e-14 from its oracle in float64; 70 contract checks, 0 failed"
    monkeypatch.setattr(status, "_SOURCE", tmp_path / "nowhere")
    status.forget()
    assert status.of(paper(names=("mamba2",))).parity is None


def test_measured_is_the_last_of_shipped_results_and_runs(tmp_path):
    from orrery.runs import RunStore

    assert status.of(paper(names=("mamba2",)), runs=tmp_path / "none").measured.where == "reference comparison 'nano-stdlib'"
    run = RunStore(tmp_path / "runs").create({"model": {"name": "mamba2", "size": "nano"}}, name="mine", seed=1)
    status.forget()
    assert "reference" in status.of(paper(names=("mamba2",)), runs=tmp_path / "runs").measured.where  # it is not finished
    run.finish({"bits_per_byte": 2.0})
    status.forget()
    measured = status.of(paper(names=("mamba2",)), runs=tmp_path / "runs").measured
    assert measured.where.startswith("run 'mine")
    assert status.of(paper(names=("emo",)), runs=tmp_path / "runs").measured is None


def test_verdicts_are_events(tmp_path):
    with Store.open(tmp_path) as store:
        emo = store.paper("emo")
        assert status.of(emo, store=store).verdict is None
        assert status.set_verdict(store, "emo", "inconclusive", at="2026-01-01T00:00:00Z")
        assert not status.set_verdict(store, "emo", "inconclusive")
        assert status.set_verdict(store, "emo", "weaker")
        assert status.of(emo, store=store).verdict == "weaker"
        rows = [tuple(row) for row in store.connection().execute("SELECT old, new FROM verdicts ORDER BY id")]
        assert rows == [(None, "inconclusive"), ("inconclusive", "weaker")]
        with pytest.raises(DataError, match="is no verdict"):
            status.set_verdict(store, "emo", "great")
        with pytest.raises(UnknownNameError):
            status.set_verdict(store, "no such paper", "weaker")


def test_every_kind_of_paper_has_a_rule():
    assert set(KINDS) - {"survey"} <= set(status.WHOLE)
    for kinds in status.WHOLE.values():
        assert set(kinds) <= set(registry.KINDS)


def test_facts_are_json():
    json.dumps([status.of(Paper(**{**fields, "title": fields["title"], "slug": fields["slug"]})).to_dict() for fields in shipped.papers()[:5]])
