"""Geometry, colours, the terminal's curves, and the pictures for files."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compare.report_samples import HOSTILE, SAMPLES, nothing_yet, sample
from oracles.colour_vision import DEFICIENCIES, contrast, least_distance
from orrery.compare.report import SparkCurve, page, palette, sparkchart
from orrery.compare.report.figures import draw_all, render, write_pictures
from orrery.compare.report.scales import (
    Box,
    Scale,
    decimals,
    domain,
    pareto,
    place_labels,
    spread,
    staircase,
    wants_log,
)
from orrery.compare.report.series import learning, lengths, shared_notes
from orrery.compare.report.spark import BRAILLE, as_text, draw
from orrery.compare.report.svg import clip

SMALL = st.integers(0, 6).map(float)


@given(st.lists(st.tuples(SMALL, SMALL), max_size=12), st.sampled_from(list(itertools.product(("low", "high"), repeat=2))))
def test_pareto_front_is_what_nothing_dominates(points, better):
    signs = [1 if side == "low" else -1 for side in better]
    worse = set()
    for i, p in enumerate(points):
        for q in points:
            gains = [s * (a - b) for s, a, b in zip(signs, p, q)]  # positive: q is better there
            if min(gains) >= 0 and max(gains) > 0:
                worse.add(i)
    assert set(pareto(points, better)) == set(range(len(points))) - worse


@given(st.lists(st.floats(0, 1), min_size=1, max_size=14), st.floats(0.01, 0.3))
def test_spread_labels_keep_order_and_distance(places, gap):
    out = spread(places, gap, 0.0, 1.0)
    fits = min(gap, 1.0 / (len(places) - 1)) if len(places) > 1 else gap
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in out)
    order = sorted(range(len(places)), key=lambda i: places[i])
    for a, b in itertools.pairwise(order):
        assert out[b] - out[a] >= fits - 1e-9
    apart = all(b - a >= gap for a, b in itertools.pairwise(sorted(places)))
    if apart:
        assert out == pytest.approx(places)  # nothing moves without need


@given(st.floats(1e-3, 1e6), st.floats(1.05, 1e6), st.booleans(), st.integers(2, 8))
def test_ticks_are_inside_and_increasing(low, ratio, log, wanted):
    scale = Scale(low, low * ratio, log)
    ticks = scale.ticks(wanted)
    assert ticks == sorted(set(ticks)) and len(ticks) <= 2 * wanted + 2
    assert all(-1e-6 <= scale(tick) <= 1 + 1e-6 for tick in ticks)
    texts = [f"{tick:.{decimals(ticks)}f}" for tick in ticks]
    if not log and low * ratio > 1:
        assert len(set(texts)) == len(texts)


def test_domains_of_odd_data():
    assert domain([]) == Scale(0.0, 1.0) and domain([], log=True).log
    one = domain([3.0])
    assert one.low < 3.0 < one.high
    assert 0 < domain([5.0, 0.0, -1.0, 80.0], log=True).low < 5.0
    assert Scale(1.0, 10.0, True)(0.0) < 0
    assert wants_log([1.0, 100.0]) and not wants_log([1.0, 2.0]) and not wants_log([0.0, 100.0]) and not wants_log([])


@given(st.lists(st.tuples(st.floats(0, 400), st.floats(0, 300)), min_size=1, max_size=6))
def test_labels_are_beside_their_points(points):
    sizes = [(40.0, 12.0)] * len(points)
    spots = place_labels(points, sizes, Box(0, 0, 400, 300))
    for (x, y), (ax, ay, anchor) in zip(points, spots):
        assert abs(ax - x) <= 10 and abs(ay - y) <= 45 and anchor in ("start", "end", "middle")


def test_labels_far_apart_stand_at_the_right():
    assert place_labels([(50, 50), (200, 200)], [(30, 10)] * 2, Box(0, 0, 400, 300), 9) == [(59, 50, "start"), (209, 200, "start")]


def test_staircase_runs_from_frame_to_frame():
    frame = Box(0, 0, 100, 100)
    path = staircase([(20, 50), (60, 80)], ("low", "low"), frame)  # y grows downwards: 80 is the better one
    assert path == [(20, 0), (20, 50), (60, 50), (60, 80), (100, 80)]
    assert staircase([(20, 80), (60, 50)], ("high", "low"), frame) == [(60, 0), (60, 50), (20, 50), (20, 80), (0, 80)]
    assert staircase([], ("low", "low"), frame) == []


@given(st.lists(st.tuples(st.floats(-50, 150), st.floats(-50, 150)), min_size=2, max_size=8))
def test_clipped_lines_lie_inside(points):
    pieces = clip(points, Box(0, 0, 100, 100))
    for piece in pieces:
        assert len(piece) >= 2 and all(-1e-6 <= c <= 100 + 1e-6 for point in piece for c in point)
    if all(0 <= c <= 100 for point in points for c in point):
        assert pieces[0][0] == pytest.approx(points[0]) and pieces[-1][-1] == pytest.approx(points[-1])


# ---------------------------------------------------------------------------------------------------- colours


@pytest.mark.parametrize(("colours", "paper"), [(palette.LIGHT, palette.PAPER_LIGHT), (palette.DARK, palette.PAPER_DARK)])
@pytest.mark.parametrize("deficiency", [None, *DEFICIENCIES])
def test_colours_are_told_apart(colours, paper, deficiency):
    assert least_distance(list(colours), deficiency) >= 0.07
    assert all(contrast(colour, paper) >= 3.0 for colour in colours)


@pytest.mark.parametrize("theme", [page.LIGHT, page.DARK])
def test_text_is_readable_on_its_paper(theme):
    for ink, least in (("ink", 7.0), ("quiet", 4.5), ("brass", 4.5), ("focus", 3.0)):
        assert contrast(theme[ink], theme["paper"]) >= least
    assert contrast(theme["quiet"], theme["wash"]) >= 4.5


def test_marks_tell_apart_what_colours_repeat():
    looks = {(palette.hue(i), palette.mark(i)) for i in range(24)}
    assert len(looks) == 24
    assert len({palette.mark(i) for i in range(12)}) == 12
    assert {shape for shape, _ in palette.MARKS} == set(palette.MATPLOTLIB)
    assert len(palette.LIGHT) == len(palette.DARK) == len(palette.RICH)


# ---------------------------------------------------------------------------------------------------- terminal curves

CURVES = st.lists(
    st.lists(st.tuples(st.floats(1, 1e6), st.floats(0, 9)), max_size=9, unique_by=lambda p: p[0]).map(sorted), max_size=5
)  # fmt: skip


@given(CURVES, st.integers(24, 140), st.integers(5, 30), st.booleans())
def test_sparkchart_has_the_size_asked_for(curves, width, height, ascii_only):
    lines = [SparkCurve(f"curve {i}", points, i, faint=i % 3 == 2) for i, points in enumerate(curves)]
    rows = sparkchart(lines, width, height, [("floor", 2.5)], ascii_only=ascii_only)
    assert len(rows) == height and all(len(row) == width for row in rows)
    chars = {cell.char for row in rows for cell in row}
    assert all(len(char) == 1 for char in chars)
    if ascii_only:
        assert not any(BRAILLE <= ord(char) <= BRAILLE + 255 for char in chars)
    assert sparkchart(lines, width, height, [("floor", 2.5)], ascii_only=ascii_only) == rows
    for index, points in enumerate(curves):
        if len(points) == 1 and len(curves) == 1:
            assert any(cell.index == index for row in rows for cell in row)


def test_a_falling_line_falls():
    rows = draw([SparkCurve("a", [(0, 1), (10, 0)])], 20, 8, Scale(0, 10), Scale(0, 1))
    tops = [min(r for r in range(8) if rows[r][c].char != " ") for c in range(20)]
    assert tops == sorted(tops) and tops[0] == 0 and tops[-1] == 7


def test_every_column_of_a_line_is_drawn():
    rows = draw([SparkCurve("a", [(0, 0.2), (10, 0.9)], 4)], 30, 6, Scale(0, 10), Scale(0, 1))
    assert all(any(rows[r][c].index == 4 for r in range(6)) for c in range(30))


def test_faint_curves_lie_behind():
    points = [(0.0, 0.5), (10.0, 0.5)]
    for order in ([0, 1], [1, 0]):
        curves = [SparkCurve("live", points, 1), SparkCurve("reference", points, 2, faint=True)]
        rows = draw([curves[i] for i in order], 12, 4, Scale(0, 10), Scale(0, 1))
        drawn = [cell for row in rows for cell in row if cell.char != " "]
        assert drawn and all(cell.index == 1 and not cell.faint for cell in drawn)


def test_sparkchart_names_curves_and_levels():
    curves = [SparkCurve("mamba2", [(100, 5), (1000, 3)]), SparkCurve("lstm", [(100, 5), (1000, 2.6)], 1)]
    text = as_text(sparkchart(curves, 80, 14, [("Kneser-Ney", 2.5)]))
    assert all(name in text for name in ("mamba2", "lstm", "Kneser-Ney"))
    assert text.index("mamba2") < text.index("lstm") < text.index("Kneser-Ney")
    assert "1k" in text.splitlines()[-1]
    empty = sparkchart([], 40, 8)
    assert len(empty) == 8


# ---------------------------------------------------------------------------------------------------- pictures for files


def test_panels_hold_every_architecture_that_has_data():
    result = SAMPLES["failures"]()
    panel = learning(result, sample(seed=9, tokens=20_000_000))
    assert {line.label for line in panel.lines if not line.faint} == {row.label for row in result.architectures} - {"gated-deltanet"}
    assert any(line.faint for line in panel.lines)
    assert [name for name, _ in panel.floors] == ["Kneser-Ney 5-gram"] and [name for name, _ in panel.levels] == ["bigram"]
    reach = panel.scales[0].high / max(x for line in panel.lines if not line.faint for x, _ in line.points)
    assert reach < 5  # the reference may not squeeze what was measured into a corner
    assert [p.key for p in lengths(result)] == ["prefill", "decode", "state"]
    assert "lstm" not in {line.label for line in lengths(result)[0].lines}
    assert learning(nothing_yet()) is None and lengths(nothing_yet()) == []


def test_a_broken_seed_does_not_break_the_line_of_the_others():
    result = SAMPLES["failures"]()
    row = result.row("mamba2")
    line = next(line for line in learning(result).lines if line.label == "mamba2")
    assert [x for x, _ in line.points] == row.curve.x
    assert line.points[-1][1] == pytest.approx((row.quality.seeds["1"] + row.quality.seeds["3"]) / 2)
    assert len(line.seeds["2"]) == 9  # what it saw before it failed stays visible


def test_long_curves_are_thinned_for_pictures_and_keep_their_end():
    result = sample(("lstm",), tasks=False)
    curve = result.architectures[0].curve
    curve.x = [float(x) for x in range(1, 5001)]
    curve.values = {"1": [5.0 - x / 2000 for x in curve.x]}
    curve.mean = curve.low = curve.high = list(curve.values["1"])
    curve.split = "training stream, before each update"
    panel = learning(result)
    (line,) = panel.lines
    assert 80 <= len(line.points) <= 160 and line.points[-1] == (5000.0, 2.5)
    assert "training stream" in panel.y_title and "validation sample" in panel.note


@pytest.mark.parametrize("name", ["failures", "hostile", "single", "nothing yet"])
def test_pictures_are_written_whole(name, tmp_path):
    paths = write_pictures(SAMPLES[name](), tmp_path / "pictures")
    assert sorted(p.name for p in paths) == sorted(p.name for p in (tmp_path / "pictures").iterdir())
    wanted = {"nothing yet": set(), "single": {"learning", "length", "capability", "quality-cost"}}
    assert {p.stem for p in paths} == wanted.get(name, {"learning", "quality-cost", "length", "capability"})
    for path in paths:
        data = path.read_bytes()
        if path.suffix == ".png":
            assert data.startswith(b"\x89PNG") and len(data) > 10_000
        else:
            root = ElementTree.fromstring(data)
            assert root.tag.endswith("svg")
            names = {node.tag.rpartition("}")[2] for node in root.iter()}
            assert "script" not in names and "image" not in names
            assert b"@import" not in data and b'href="http' not in data


def test_equal_results_are_equal_files():
    first, second = ([render(figure, "svg") for _, figure in draw_all(sample(("lstm", "mamba2"), tasks=False))] for _ in range(2))
    assert first == second


def test_names_are_drawn_as_they_are():
    """A dollar sign in a name is no formula, and every axis of every picture has a title."""
    result = sample((*HOSTILE[3:], "lstm"), tasks=True)
    for _, figure in draw_all(result):
        texts = [text for axes in figure.axes for text in (*axes.texts, *axes.get_yticklabels())]
        assert not any(text.get_parse_math() and "$" in text.get_text() for text in texts)
        assert all(axes.get_xlabel() for axes in figure.axes)
        render(figure, "png")


def test_notes_that_all_share_are_said_once():
    notes = {"lstm": "batch 1", "gpt2": "batch 1; 2048: too long", "gru": "batch 1"}
    assert shared_notes(notes) == ["batch 1", "gpt2: 2048: too long"]
    assert shared_notes({}) == [] and shared_notes({"a": ""}) == []


def test_the_plot_begins_where_the_first_curve_comes_into_view():
    result = sample(("lstm", "mamba2"), tasks=False)
    for row in result.architectures:
        row.curve.x = [float(k) for k in range(1, 61)]
        row.curve.values = {"1": [9.0 if k <= 15 else 3.0 - k / 100 for k in range(1, 61)]}
        row.curve.mean = row.curve.low = row.curve.high = list(row.curve.values["1"])
    scale_x, scale_y = learning(result).scales
    first = min(x for x, y in learning(result).lines[0].points if y <= scale_y.high)
    assert scale_y.high < 9 and first > 15 and 0.95 * first < scale_x.low <= first and scale_x(60.0) <= 1
