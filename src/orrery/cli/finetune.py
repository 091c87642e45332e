"""`orrery finetune`, `predict`, `evaluate` (of fine-tuned models): from a table to answers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from orrery.cli import output


def finetune(
    model: str = typer.Argument(
        ..., help="A folder of a model (ours, a run's, or transformers'), or an architecture: bert, lstm, t5."
    ),
    train: str = typer.Option(
        ..., "--train", help="FILE.csv, .tsv, .jsonl, .conll; NAME=FILE,NAME=FILE; label-text:FILE."
    ),
    text: str = typer.Option("text", "--text", help="The column of the texts (of CoNLL files a number)."),
    label: str = typer.Option("label", "--label", help="The column of the labels."),
    pair: str = typer.Option("", "--pair", help="The column of a second text, where two are compared."),
    task: str | None = typer.Option(
        None,
        "--task",
        help="classification, multi-label, regression, ordinal, tagging, text-to-text; guessed from the labels otherwise.",
    ),
    validation: str | None = typer.Option(
        None, "--validation", help="A table that chooses the epoch; else a tenth of --train."
    ),
    test: str | None = typer.Option(None, "--test", help="A table that chooses nothing, for honest figures."),
    out: Path = typer.Option(..., "--out", help="The folder to write."),
    size: str | None = typer.Option(None, "--size", help="Of an architecture by name: nano, micro, tiny, small, base."),
    tokenizer: str | None = typer.Option(
        None, "--tokenizer", help="bytes, bpe:4096, wordpiece:8192,lower, a folder; else the model's own."
    ),
    names: str = typer.Option("", "--names", help="The labels in order, separated by commas (ordinal)."),
    header: bool = typer.Option(True, "--header/--no-header", help="Whether the first row of a CSV names its columns."),
    settings: list[str] = typer.Option(
        [],
        "--set",
        help="epochs=5, lr=1e-4, batch=16, seed=1, truncate=true, balance=true, repair=true; model.KEY=VALUE.",
    ),
    baseline: bool = typer.Option(True, "--baseline/--no-baseline", help="Fit a bag of words (or the like) beside it."),
    strict: bool = typer.Option(
        False, "--strict", help="Refuse text that is not UTF-8 in place of replacing and counting it."
    ),
    as_json: bool = typer.Option(False, "--json", help="For machines: the result."),
) -> None:
    """Fine-tune a model on a table; the same command continues what was interrupted.

    Example:  orrery finetune bert --size micro --train reviews.csv --text review --label stars --task ordinal --out runs/stars
    """
    from orrery.core.config import parse_overrides
    from orrery.data.labelled import TaskSpec, guess_kind
    from orrery.data.records import read_table
    from orrery.methods.finetune import FinetuneConfig
    from orrery.methods.finetune import finetune as run

    tables = {
        side: read_table(source, header=header, strict=strict)
        for side, source in (("train", train), ("validation", validation), ("test", test))
        if source is not None
    }
    kind = task or guess_kind(tables["train"], label)
    if task is None and not as_json:
        output.remark(f"the labels look like {kind}; --task says otherwise")
    spec = TaskSpec(kind=kind, text=text, pair=pair, label=label, names=tuple(filter(None, names.split(","))))
    given = parse_overrides(settings)
    own: dict[str, Any] = {
        key.removeprefix("model."): value for key, value in given.items() if key.startswith("model.")
    }
    config = FinetuneConfig.from_dict(
        {"task": spec.to_dict(), **{k: v for k, v in given.items() if not k.startswith("model.")}}
    )
    result = run(
        model, tables["train"], out, config, validation=tables.get("validation"), test=tables.get("test"), tokenizer=tokenizer,
        size=size, settings=own, compare_baseline=baseline, quiet=as_json,
    )  # fmt: skip
    if as_json:
        output.say_json(result)
    elif result["status"] == "interrupted":
        output.remark(f"interrupted after {result['epochs']} epochs; the same command goes on")
        raise typer.Exit(130)
    else:
        _show(result)
        print(f"model, task and card: {out}")


def _show(result: dict[str, Any]) -> None:
    sides = list(result["figures"])
    rows = []
    for name in result["figures"][sides[0]]:
        found = [result["figures"][side].get(name) for side in sides]
        rows.append(
            [
                name.replace("_", " "),
                *("" if f is None else f"{f['value']:.4f} ({f['low']:.4f} to {f['high']:.4f})" for f in found),
            ]
        )
    other = result.get("baseline")
    if other:
        for row, name in zip(rows, result["figures"][sides[0]], strict=True):
            there = other["figures"].get(name)
            row.append("" if there is None else f"{there['value']:.4f}")
    heads = ["figure", *(f"{side}, 95 %" for side in sides), *([f"baseline, {other['table']}"] if other else [])]
    output.say_table(heads, rows)
    if other:
        gap = other["difference"]
        verb = "beats" if other["beaten"] else "does NOT beat"
        print(
            f"{verb} {other['name']}: {gap['figure'].replace('_', ' ')} {gap['value']:+.4f} "
            f"({gap['low']:+.4f} to {gap['high']:+.4f}, paired by row, {other['table']})"
        )
    for note in result["notes"]:
        output.remark(f"note: {note}")


def predict(
    model: Path = typer.Argument(..., help="A folder that `orrery finetune` wrote."),
    text: list[str] = typer.Option(
        [], "--text", help="A text to answer (may be repeated); without it and --input, lines of standard input."
    ),
    table: str | None = typer.Option(None, "--input", help="A table with the columns that the model reads."),
    header: bool = typer.Option(True, "--header/--no-header", help="Whether the first row of a CSV names its columns."),
    truncate: bool = typer.Option(False, "--truncate", help="Cut texts that are too long in place of refusing them."),
) -> None:
    """Answer texts, one JSON object a line.

    Example:  orrery predict runs/stars --text "Two hours I will not get back."
    """
    import json

    from orrery.data.records import read_table
    from orrery.methods.fitted import load_fitted

    fitted = load_fitted(model)
    if table is not None:
        rows: Any = read_table(table, header=header)
    else:
        rows = list(text) or [line.rstrip("\n") for line in sys.stdin]
    for answer in fitted.predict(rows, truncate, quiet=False):
        print(json.dumps(answer, ensure_ascii=False))


def evaluate(
    model: Path = typer.Argument(..., help="A folder that `orrery finetune` wrote."),
    table: str = typer.Argument(..., help="A table with the model's columns and its labels."),
    against: Path | None = typer.Option(None, "--against", help="Another fine-tuned model, compared row by row."),
    header: bool = typer.Option(True, "--header/--no-header", help="Whether the first row of a CSV names its columns."),
    truncate: bool = typer.Option(False, "--truncate", help="Cut texts that are too long in place of refusing them."),
    as_json: bool = typer.Option(False, "--json", help="For machines."),
) -> None:
    """Figures of a fine-tuned model on a table, with intervals over its rows.

    Example:  orrery evaluate runs/stars test.csv --against runs/other
    """
    from orrery.data.records import read_table
    from orrery.evaluate.predictions import paired_interval
    from orrery.methods.fitted import load_fitted

    rows = read_table(table, header=header)
    fitted = load_fitted(model)
    judged = fitted.judge(fitted.encode(rows, truncate=truncate), quiet=as_json)
    figures = {name: value.to_dict() for name, value in judged.measured().items()}
    found: dict[str, Any] = {"rows": len(rows), "figures": figures, "notes": judged.notes}
    if judged.spans is not None:
        found["spans"] = judged.spans.to_dict()
    if against is not None:
        other = load_fitted(against)
        theirs = other.judge(other.encode(rows, truncate=truncate), quiet=as_json)
        gap = paired_interval(judged.figures[judged.main], judged.items, theirs.items)
        found["difference"] = {"figure": judged.main, "value": gap.estimate, "low": gap.low, "high": gap.high}
    if as_json:
        output.say_json(found)
        return
    output.say_table(
        ("figure", "value", "95 %"),
        [
            (name.replace("_", " "), f"{f['value']:.4f}", f"{f['low']:.4f} to {f['high']:.4f}")
            for name, f in figures.items()
        ],
        right=(1,),
    )
    if against is not None:
        gap_found = found["difference"]
        print(
            f"{gap_found['figure'].replace('_', ' ')} {gap_found['value']:+.4f} ({gap_found['low']:+.4f} to {gap_found['high']:+.4f}) "
            f"against {against}, paired by row"
        )
    for note in judged.notes:
        output.remark(f"note: {note}")
