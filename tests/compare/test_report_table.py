"""The table of a comparison: columns, terminal, plain text, CSV, Markdown."""

from __future__ import annotations

import csv
import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compare.report_samples import HOSTILE, SAMPLES, sample
from orrery.compare import result as schema
from orrery.compare.report import build_table, digits, render_table, render_text, to_csv, to_markdown
from orrery.compare.report.columns import interval_text, shared_length
from orrery.compare.report.terminal import wrap_name


@pytest.fixture(scope="module")
def results() -> dict[str, schema.ComparisonResult]:
    return {name: make() for name, make in SAMPLES.items()}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_plain_text_fits_and_names_everything(results, name, width):
    result = results[name]
    text = render_text(result, width)
    assert max(len(line) for line in text.splitlines()) <= width
    squeezed = "".join(text.split())
    for row in result.architectures:
        for part in row.label.split():  # a long name is broken over lines, between its words or inside one
            assert part in squeezed or part in "".join(wrap_name(row.label, 24)).replace(" ", "")
    table = build_table(result)
    for column in table.columns:
        if not column.minor:
            for cell in column.cells.values():
                assert cell.text in text, (column.key, cell)
    if result.contrasts:
        assert all(one.verdict.split()[0] in text for one in result.contrasts)
    assert "significan" not in text.lower()
    assert text.isprintable() or all(char.isprintable() or char == "\n" for char in text)


def test_text_says_protocol_doubt_failures_and_origin(results):
    text = " ".join(render_text(results["failures"], 80).split())
    assert "early in training: ranks data efficiency, not final quality" in text
    assert "Doubt: 3 seeds cannot decide" in text and "Reason: it reaches" in text
    assert "gated-deltanet, every run: out of memory: the process was ended" in text
    assert "mamba2, seed 2: failed: loss is not finite at step 71." in text
    assert "Noise floor: transformer against itself" in text
    assert "Energy of training and decoding: estimated; no meter" in text and "est." in text
    assert "orrery compare --budget 20Mtok --seeds 6" in text
    assert "2 of 3" in text
    alone = render_text(results["nothing yet"], 80)
    assert "No architecture finished a run" in alone and "not finished" in alone


def test_ascii_form_is_ascii_and_as_wide(results):
    for result in (results["quick"], results["twelve"]):
        text = render_text(result, 80)
        plain = render_text(result, 80, ascii_only=True)
        assert plain.isascii() and "+-0." in plain
        assert [len(line) for line in plain.splitlines()] == [len(line) for line in text.splitlines()]


@pytest.mark.parametrize("width", [80, 120])
def test_rich_form_says_what_the_plain_form_says(results, width):
    from rich.console import Console

    for name in ("quick", "hostile", "failures"):
        console = Console(file=io.StringIO(), width=width, color_system=None)
        console.print(render_table(results[name]))
        shown = console.file.getvalue()
        assert max(len(line.rstrip()) for line in shown.splitlines()) <= width
        assert shown.split() == render_text(results[name], width).split()
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor")
    console.print(render_table(results["hostile"]))
    assert "[bold]f[/bold]" in "".join(console.file.getvalue().split())  # a name is no markup


def test_rows_by_quality_failed_ones_last(results):
    for result in results.values():
        means = [row.quality.mean for row in build_table(result).rows]
        known = [mean for mean in means if mean is not None]
        assert known == sorted(known) and all(mean is None for mean in means[len(known) :])
        assert sorted(row.label for row in build_table(result).rows) == sorted(row.label for row in result.architectures)


def test_an_estimate_is_never_shown_as_a_measurement(results):
    result = sample()
    for column in (build_table(result).column("train_energy"), build_table(result).column("decode_energy")):
        assert column.how == "estimated"
    result.row("lstm").costs.train_energy = schema.Quantity(900.0, "J/Mtok", "measured", "RAPL")
    mixed = build_table(result).column("train_energy")
    assert mixed.how == "mixed" and mixed.cells["lstm"].text == "900"
    assert all(mixed.cells[label].text.endswith(" est.") for label in mixed.cells if label != "lstm")
    assert "measured or estimated, as marked" in " ".join(render_text(result, 100).split())


def test_lengths_are_those_that_most_share():
    def series(**points):
        return schema.Series("tokens", "B", points=[schema.Point(float(k[1:]), v) for k, v in points.items()])

    assert shared_length([series(x128=1.0, x256=2.0), series(x128=1.0, x256=None), series(x128=3.0)]) == 128
    assert shared_length([series(x128=1.0, x256=2.0), series(x256=2.0)]) == 256
    assert shared_length([]) is None
    assert shared_length([series(x128=None)]) is None


def test_decoding_becomes_tokens_per_second():
    result = sample(("lstm", "mamba2"))
    column = build_table(result).column("decode")
    points = {p.x: p.y for p in result.row("lstm").costs.decode.points}
    assert column.cells["lstm"].value == pytest.approx(1000 / points[4096.0]) and column.at == "at 4,096"


def test_tokens_stand_in_the_table_only_when_they_differ(results):
    assert "tokens" not in [c.key for c in build_table(results["quick"]).columns]
    column = build_table(results["time budget"]).column("tokens")
    assert column.cells["lstm"].value == results["time budget"].protocol.tokens["lstm"]


@pytest.mark.parametrize("name", SAMPLES)
def test_csv_round_trip(results, name):
    result = results[name]
    table = build_table(result)
    rows = list(csv.DictReader(io.StringIO(to_csv(result))))
    assert [row["architecture"] for row in rows] == [row.label for row in table.rows]
    for line in rows:
        row = result.row(line["architecture"])
        assert line["status"] == row.status and line["spec"] == row.spec
        for column in table.columns:
            head = next(key for key in line if key.split(" [")[0] == column.key)
            cell = column.cells[row.label]
            assert (float(line[head]) if line[head] else None) == cell.value
            assert line[f"{column.key} how"] == cell.how
        assert (float(line["quality low"]) if line["quality low"] else None) == row.quality.low
        assert line["quality [bits per byte]"] == ("" if row.quality.mean is None else repr(row.quality.mean))


def test_markdown_cells_hold_any_name(results):
    text = to_markdown(results["hostile"])
    lines = text.splitlines()
    columns = lines[1].count("|") - 1
    for line in lines:
        assert line.replace("\\|", "").count("|") == columns + 1
    assert "<script" not in text and "&lt;script&gt;" in text
    assert len(lines) == 2 + len(HOSTILE) + 1


@given(st.text(alphabet="ab-+|(,_=/ ", min_size=1, max_size=80), st.integers(12, 40))
def test_names_are_cut_to_width_and_lose_nothing(name, width):
    lines = wrap_name(name, width)
    assert all(len(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(name.split())


@given(st.floats(1e-9, 1e15))
def test_numbers_for_people_are_near_the_number(value):
    shown = float(digits.plain(value).replace(",", ""))
    assert shown == pytest.approx(value, rel=6e-3)
    number, letter = digits.with_prefix(max(value, 1.0)).rstrip("kMGTPE"), digits.with_prefix(max(value, 1.0))[-1]
    factor = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}.get(letter, 1.0)
    assert float(number.replace(",", "")) * factor == pytest.approx(max(value, 1.0), rel=6e-3)


def test_numbers_in_words():
    assert digits.plain(2290.4) == "2,290" and digits.plain(0.01234) == "0.0123" and digits.plain(0) == "0"
    assert digits.plain(math.nan) == digits.ABSENT
    assert digits.count(600_000) == "600k" and digits.count(2_097_152) == "2.1M" and digits.count(7) == "7"
    assert digits.percent(0.9834) == "98.3 %" and digits.percent(1.0) == "100 %"
    assert digits.seconds(0.0032) == "3.2 ms" and digits.seconds(95) == "1 min 35 s" and digits.seconds(7200) == "2 h"
    assert digits.signed(-0.0123) == "-0.012" and digits.signed(0.5) == "+0.500"
    assert digits.common_prefix([1.0, 1e9]) is None and digits.common_prefix([2e6, 3e6]) == (1e6, "M")
    assert interval_text(2.0, 1.9, 2.1) == "2.000 ±0.100" and interval_text(2.0, 1.5, 2.1) == "2.000 [1.500, 2.100]"
    assert interval_text(2.0, None, None) == "2.000"
