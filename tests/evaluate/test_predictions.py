"""Figures of predictions against scikit-learn, scipy, seqeval and sacrebleu, and their intervals against simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orrery.core.errors import DataError
from orrery.evaluate import predictions as p
from orrery.evaluate.answers import chrf, exact_match, word_f1
from orrery.evaluate.spans import Span, broken, scheme_of, score_spans, spans

rng = np.random.default_rng(0)
TRUE = rng.integers(0, 4, 300)
FOUND = np.where(rng.random(300) < 0.6, TRUE, rng.integers(0, 5, 300))
PROBABILITIES = rng.dirichlet(np.ones(5), 300)


def test_classes_equal_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    items = {"true": TRUE, "predicted": FOUND}
    assert p.accuracy(items) == pytest.approx(metrics.accuracy_score(TRUE, FOUND))
    assert p.macro_f1(items) == pytest.approx(metrics.f1_score(TRUE, FOUND, average="macro"))
    assert p.matthews(items) == pytest.approx(metrics.matthews_corrcoef(TRUE, FOUND))
    assert p.weighted_kappa(items) == pytest.approx(metrics.cohen_kappa_score(TRUE, FOUND, weights="quadratic"))
    assert p.nats_of_truth({"true": TRUE, "probabilities": PROBABILITIES}) == pytest.approx(
        metrics.log_loss(TRUE, PROBABILITIES, labels=range(5))
    )
    two = {"true": TRUE % 2, "probabilities": PROBABILITIES[:, :2] / PROBABILITIES[:, :2].sum(1, keepdims=True)}
    assert p.brier(two) == pytest.approx(2 * metrics.brier_score_loss(two["true"], two["probabilities"][:, 1]))


def test_labels_and_numbers_equal_scikit_learn_and_scipy():
    metrics, stats = pytest.importorskip("sklearn.metrics"), pytest.importorskip("scipy.stats")
    a, b = rng.integers(0, 2, (50, 6)), rng.integers(0, 2, (50, 6))
    items = {"true": a, "predicted": b}
    assert p.micro_f1(items) == pytest.approx(metrics.f1_score(a, b, average="micro"))
    assert p.label_macro_f1(items) == pytest.approx(metrics.f1_score(a, b, average="macro"))
    assert p.all_right(items) == pytest.approx(metrics.accuracy_score(a, b))
    x, y = rng.integers(0, 9, 80).astype(float), rng.normal(size=80)
    items = {"true": x, "predicted": y + 0.2 * x}
    assert p.pearson(items) == pytest.approx(stats.pearsonr(x, items["predicted"]).statistic)
    assert p.spearman(items) == pytest.approx(stats.spearmanr(x, items["predicted"]).statistic)
    assert p.root_mean_square(items) == pytest.approx(metrics.mean_squared_error(x, items["predicted"]) ** 0.5)
    assert p.pearson({"true": x, "predicted": np.ones(80)}) == 0


def test_calibration_by_hand():
    """Ten items at confidence 0.8 of which six are right: off by 0.2; two at 1.0 of which both are right: off by nothing."""
    true = np.array([1] * 6 + [0] * 4 + [1, 1])
    items = {"true": true, "predicted": np.ones(12, int), "confidence": np.array([0.8] * 10 + [1.0] * 2)}
    assert p.calibration_error(items) == pytest.approx(0.2 * 10 / 12)
    drawn = p.reliability(items["confidence"], (true == 1).astype(float))
    assert [(round(c, 6), round(r, 6), n) for c, r, n in drawn] == [(0.8, 0.6, 10), (1.0, 1.0, 2)]


def test_intervals_cover_what_they_should():
    """Of 200 simulated test sets, the interval holds the true accuracy in 95 % (binomial: 88 % is ten deviations off)."""
    held = 0
    for seed in range(200):
        right = (np.random.default_rng(seed).random(150) < 0.7).astype(int)
        found = p.measure({"accuracy": p.accuracy}, {"true": np.ones(150, int), "predicted": right}, 300, seed)
        held += found["accuracy"].low <= 0.7 <= found["accuracy"].high
    assert 176 <= held <= 199


def test_pairing_items_removes_what_both_share():
    hard = rng.random(400) < 0.5
    first = {"true": np.ones(400, int), "predicted": np.where(hard, 0, 1)}
    second = {"true": np.ones(400, int), "predicted": np.where(hard | (rng.random(400) < 0.05), 0, 1)}
    paired = p.paired_interval(p.accuracy, first, second, 500)
    alone = p.measure({"accuracy": p.accuracy}, first, 500)["accuracy"]
    assert 0 < paired.low <= paired.estimate <= paired.high
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)
    with pytest.raises(DataError, match="the same"):
        p.paired_interval(p.accuracy, first, {"true": np.ones(3), "predicted": np.ones(3)})
    with pytest.raises(DataError, match="no item"):
        p.measure({"accuracy": p.accuracy}, {"true": np.ones(0)})


TAGS = st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"]), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(TAGS, st.randoms(use_true_random=False)), min_size=1, max_size=4))
def test_span_f1_equals_seqeval(rows):
    seqeval = pytest.importorskip("seqeval.metrics")
    true = [row for row, _ in rows]
    found = [[r.choice(["O", "B-A", "I-A", "I-B", tag]) for tag in row] for row, r in rows]
    report = score_spans(true, found)
    theirs = [seqeval.precision_score, seqeval.recall_score, seqeval.f1_score]
    if report.overall.predicted and report.overall.true:
        ours = (report.overall.precision, report.overall.recall, report.overall.f1)
        assert ours == pytest.approx([score(true, found) for score in theirs])
    assert report.tokens_right == pytest.approx(seqeval.accuracy_score(true, found))
    assert sum(s.right for s in report.sentences) == report.overall.right


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["O", *(f"{mark}-{kind}" for mark in "BIES" for kind in "AB")]), min_size=1, max_size=12))
def test_broken_sequences_of_ends_and_single_tokens_are_read_as_seqeval_reads_them(tags):
    labels = pytest.importorskip("seqeval.metrics.sequence_labeling")
    assert [(kind, first, last - 1) for kind, first, last in spans(tags)] == labels.get_entities(tags)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("AB"), st.integers(1, 4), st.booleans()), min_size=1, max_size=5))
def test_bilou_is_read_as_seqeval_reads_it(parts):
    scheme = pytest.importorskip("seqeval.scheme")
    tags: list[str] = []
    for kind, size, outside in parts:
        inner = ["O"] * size if outside else [f"U-{kind}"] if size == 1 else [f"B-{kind}", *[f"I-{kind}"] * (size - 2), f"L-{kind}"]
        tags += inner
    theirs = scheme.Entities([tags], scheme.BILOU).entities[0]
    assert spans(tags) == [Span(each.tag, each.start, each.end) for each in theirs]
    assert broken(tags, "bioes") is None and (not theirs or scheme_of([tags]) in ("bio", "bioes"))


def test_spans_of_both_schemes():
    assert spans(["B-A", "I-A", "O", "B-B"]) == [Span("A", 0, 2), Span("B", 3, 4)]
    assert spans(["B-A", "E-A", "S-B", "I-C"]) == [Span("A", 0, 2), Span("B", 2, 3), Span("C", 3, 4)]
    assert spans(["B-A", "B-A", "I-B"]) == [Span("A", 0, 1), Span("A", 1, 2), Span("B", 2, 3)]
    assert scheme_of([["B-A", "I-A", "O"]]) == "bio" and scheme_of([["S-A"]]) == scheme_of([["U-A"]]) == "bioes"
    assert scheme_of([["NOUN", "O"]]) == "plain"
    assert score_spans([["O"]], [["O"]]).overall.f1 == 1


@pytest.mark.parametrize(
    ("tags", "scheme", "where"),
    [
        (["O", "I-A"], "bio", 1),
        (["B-A", "I-B"], "bio", 1),
        (["B-A", "I-A", "I-A"], "bio", None),
        (["B-A", "X-A"], "bio", 1),
        (["B-A", "I-A", "E-A", "S-B"], "bioes", None),
        (["B-A", "O"], "bioes", 1),
        (["E-A"], "bioes", 0),
        (["S-A", "I-A"], "bioes", 1),
        (["B-A"], "bioes", 0),
        (["NOUN"], "plain", None),
    ],
)
def test_where_a_sequence_breaks_its_scheme(tags, scheme, where):
    assert broken(tags, scheme) == where


def test_answers():
    assert exact_match("The  Tower!", ["a tower", "x"]) == 1 and exact_match("tower", ["towers"]) == 0
    assert word_f1("the big red tower", ["red tower of London"]) == pytest.approx(2 * 2 / (3 + 4))
    assert word_f1("", [""]) == 1 and word_f1("x", [""]) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text("ab c", max_size=12), st.text("ab c", max_size=12)), min_size=1, max_size=4))
def test_chrf_equals_sacrebleu(pairs):
    sacrebleu = pytest.importorskip("sacrebleu")
    outputs, references = zip(*pairs, strict=True)
    theirs = sacrebleu.corpus_chrf(list(outputs), [list(references)]).score
    assert 100 * chrf(outputs, references) == pytest.approx(theirs, abs=1e-9)
