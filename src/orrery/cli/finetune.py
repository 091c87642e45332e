"""`orrery finetune`, `predict`, `evaluate` (of fine-tuned models): from a table to answers."""

from __future__ import annotations

import io
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
        "", "--train", help="FILE.csv, .tsv, .jsonl, .json (SQuAD's), .conll; NAME=FILE,NAME=FILE; label-text:FILE."
    ),
    tasks: str = typer.Option("", "--tasks", help="A JSON file of several tasks, learnt together by one body (docs/encoders.md)."),
    text: str = typer.Option("text", "--text", help="The column of the texts (of CoNLL files a number)."),
    label: str = typer.Option("label", "--label", help="The column of the labels."),
    pair: str = typer.Option("", "--pair", help="The column of a second text, where two are compared; of questions."),
    choices: str = typer.Option("", "--choices", help="The columns of choices, separated by commas, or one of lists; --label says which is right."),
    apart: bool = typer.Option(False, "--apart", help="Both texts are read by themselves and compared by their vectors (bi-encoder)."),
    words: bool = typer.Option(False, "--words", help="A bag of words answers with the model, in a share chosen on the validation rows."),
    task: str | None = typer.Option(
        None,
        "--task",
        help="classification, multi-label, regression, ordinal, tagging, text-to-text, question-answering, multiple-choice; else guessed.",
    ),
    validation: str | None = typer.Option(None, "--validation", help="A table that chooses the epoch; else a tenth of --train."),
    test: str | None = typer.Option(None, "--test", help="A table that chooses nothing, for honest figures."),
    out: Path = typer.Option(..., "--out", help="The folder to write."),
    size: str | None = typer.Option(None, "--size", help="Of an architecture by name: nano, micro, tiny, small, base."),
    tokenizer: str | None = typer.Option(None, "--tokenizer", help="bytes, bpe:4096, wordpiece:8192,lower, a folder; else the model's own."),
    teacher: str | None = typer.Option(
        None, "--teacher", help="A folder that `orrery finetune` wrote: its answers are learnt too; --set distil.temperature=4."
    ),
    names: str = typer.Option("", "--names", help="The labels in order, separated by commas (ordinal)."),
    header: bool = typer.Option(True, "--header/--no-header", help="Whether the first row of a CSV names its columns."),
    balance: bool = typer.Option(False, "--balance", help="Classes weigh alike, however frequent."),
    truncate: bool = typer.Option(False, "--truncate", help="Cut (and count) texts that are too long in place of refusing them."),
    repair: bool = typer.Option(False, "--repair", help="Read tags that break their scheme as the CoNLL scorer does, and count them."),
    settings: list[str] = typer.Option([], "--set", help="epochs=5, lr=1e-4, batch=16, seed=1; model.KEY=VALUE; distil.KEY=VALUE."),
    baseline: bool = typer.Option(True, "--baseline/--no-baseline", help="Fit a bag of words (or the like) beside it."),
    encoding: str = typer.Option("", "--encoding", help="Of text that is not UTF-8: cp1250, latin-1, utf-16 ...; or before a file, cp1250:FILE."),
    strict: bool = typer.Option(False, "--strict", help="Refuse text that is not of its encoding in place of replacing and counting it."),
    as_json: bool = typer.Option(False, "--json", help="For machines: the result."),
) -> None:
    """Fine-tune a model on a table; the same command continues what was interrupted.

    Example:  orrery finetune bert --size micro --train reviews.csv --text review --label stars --task ordinal --out runs/stars
    """
    from orrery.core.config import parse_overrides
    from orrery.core.errors import ConfigError
    from orrery.data.records import read_table
    from orrery.methods.finetune import FinetuneConfig
    from orrery.methods.finetune import finetune as run

    if bool(train) == bool(tasks):
        raise ConfigError("say what to learn from: --train TABLE for one task, or --tasks FILE.json for several")
    wanted = {"balance": balance, "truncate": truncate, "repair": repair}
    given: dict[str, Any] = {key: True for key in wanted if wanted[key]} | parse_overrides(settings)
    if tasks:
        _finetune_several(model, tasks, out, size, tokenizer, given, baseline, as_json, (header, strict, encoding))
        return
    tables = {
        side: read_table(source, header=header, strict=strict, encoding=encoding)
        for side, source in (("train", train), ("validation", validation), ("test", test))
        if source is not None
    }
    spec = task_of(tables["train"], task, (text, pair, label), choices, "" if as_json else "--task")
    spec = spec.replace(names=tuple(filter(None, names.split(","))), apart=apart, words=words)
    own = {key.removeprefix("model."): value for key, value in given.items() if key.startswith("model.")}
    distil = {key.removeprefix("distil."): value for key, value in given.items() if key.startswith("distil.")}
    distil |= {} if teacher is None else {"teacher": teacher}
    plain = {key: value for key, value in given.items() if not key.startswith(("model.", "distil."))}
    config = FinetuneConfig.from_dict({"task": spec.to_dict(), **plain, "distil": distil})
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


def task_of(table: Any, task: str | None, columns: tuple[str, str, str], choices: str, option: str) -> Any:
    """The task of a table: what was typed, or what its columns and labels look like.

    Args:
        columns: text, pair, label. choices: names of columns, separated by commas.
        option: with which another task is asked for, to be said of a guess; "": nothing is said.
    """
    from orrery.data.examples import TaskSpec
    from orrery.data.labelled import guess_kind

    (text, pair, label), there = columns, table.columns
    task = task or ("multiple-choice" if choices else None)
    asks = task is None and text not in there and {"context", "question"} <= set(there)
    kind = task or ("question-answering" if asks else guess_kind(table, label))
    if task is None and option:
        output.remark(f"the {'columns' if asks else 'labels'} look like {kind}; {option} says otherwise")
    if kind == "question-answering":  # as SQuAD calls its columns, where nobody says otherwise
        usual = ("answers" if "answers" in there else "answer") if label not in there else label
        text, pair, label = text if text in there else "context", pair or "question", usual
    return TaskSpec(kind=kind, text=text, pair=pair, label=label, choices=tuple(filter(None, choices.split(","))))


def _finetune_several(
    model: str, file: str, out: Path, size: str | None, tokenizer: str | None, given: dict[str, Any], baseline: bool, as_json: bool,
    reading: tuple[bool, bool, str],
) -> None:  # fmt: skip
    """`--tasks`: what the file says of all tasks, then what was typed."""
    from orrery.methods.multitask import MultitaskConfig, multitask, read_tasks

    parts, said = read_tasks(file, header=reading[0], strict=reading[1], encoding=reading[2])
    own = {key.removeprefix("model."): value for key, value in given.items() if key.startswith("model.")}
    shared = {**said, **{key: value for key, value in given.items() if not key.startswith("model.")}}
    top: dict[str, Any] = {key: shared.pop(key) for key in ("weighting", "temperature") if key in shared}
    config = MultitaskConfig.from_dict({**top, "finetune": shared})
    result = multitask(
        model, parts, out, config, tokenizer=tokenizer, size=size, settings=own, compare_baseline=baseline, quiet=as_json
    )
    if as_json:
        output.say_json(result)
        return
    if result["status"] == "interrupted":
        output.remark(f"interrupted after {result['epochs']} epochs; the same command goes on")
        raise typer.Exit(130)
    for name, task in result["tasks"].items():
        learnt = result["learnt_weights"].get(name)
        print(f"{name}: {task['task']['kind']}, {task['steps']} steps" + (f", weight {learnt:.3f} by its uncertainty" if learnt else ""))
        _show(task)
        print()
    print(f"a model, task and card for each: {out}/tasks/")


def _show(result: dict[str, Any]) -> None:
    sides = [side for side in ("validation", "test") if side in result["figures"]]  # a result that was read back has lost its order
    names = sorted(result["figures"][sides[0]], key=lambda name: name != result["main"])
    rows = []
    for name in names:
        found = [result["figures"][side].get(name) for side in sides]
        rows.append(
            [
                name.replace("_", " "),
                *("" if f is None else f"{f['value']:.4f} ({f['low']:.4f} to {f['high']:.4f})" for f in found),
            ]
        )
    other = result.get("baseline")
    if other:
        for row, name in zip(rows, names, strict=True):
            there = other["figures"].get(name)
            row.append("" if there is None else f"{there['value']:.4f}")
    heads = ["figure", *(f"{side}, 95 %" for side in sides), *([f"baseline, {other['table']}"] if other else [])]
    output.say_table(heads, rows)
    if mixed := result.get("words"):
        first, value = next(iter(mixed["network"].items()))
        alone = f"{first.replace('_', ' ')} {value['value']:.4f}"
        print(f"words and network together (share of the words {mixed['share']:.2f}); the network alone: {alone}")
    if other:
        gap = other["difference"]
        verb = "beats" if other["beaten"] else "does NOT beat"
        print(
            f"{verb} {other['name']}: {gap['figure'].replace('_', ' ')} {gap['value']:+.4f} "
            f"({gap['low']:+.4f} to {gap['high']:+.4f}, paired by row, {other['table']})"
        )
        if not other["beaten"] and not mixed and result["task"]["kind"] in ("classification", "multi-label", "regression", "ordinal"):
            output.remark("note: --words lets the bag of words answer with the network; on small tables both together are often better than either")
    if "teacher" in result:
        found = result["teacher"]
        first, value = next(iter(found["figures"].items()))
        share = result["parameters"] / found["parameters"]
        print(f"its teacher ({1 / share:.2g} times its parameters): {first.replace('_', ' ')} {value['value']:.4f} on the {found['table']} rows")
    for note in result["notes"]:
        output.remark(f"note: {note}")


def predict(
    model: Path = typer.Argument(..., help="A folder that `orrery finetune` wrote."),
    text: list[str] = typer.Option(
        [], "--text", help="A text to answer (may be repeated); without it and --input, lines of standard input."
    ),
    table: str | None = typer.Option(None, "--input", help="A table with the columns that the model reads."),
    header: bool = typer.Option(True, "--header/--no-header", help="Whether the first row of a CSV names its columns."),
    encoding: str = typer.Option("", "--encoding", help="Of the table or input; else that of the training table."),
    truncate: bool = typer.Option(False, "--truncate", help="Cut texts that are too long in place of refusing them."),
) -> None:
    """Answer texts, one JSON object a line.

    Example:  orrery predict runs/stars --text "Two hours I will not get back."
    """
    import json

    from orrery.data.records import read_table
    from orrery.data.text import Tally
    from orrery.methods.fitted import load_fitted

    fitted, tally = load_fitted(model), Tally()
    rows: Any = list(text) or None
    if table is not None:
        rows = read_table(table, header=header, encoding=encoding or fitted.encoding)
        tally = rows.tally
    examples = fitted.read(_lines(tally, encoding or fitted.encoding) if rows is None else rows, truncate)
    for answer in fitted.answers(examples, quiet=False):
        print(json.dumps(answer, ensure_ascii=False))
    for note in _reading(tally, examples):
        output.remark(f"note: {note}")


def _lines(tally: Any, encoding: str) -> list[str]:
    """The lines of standard input, whatever encoding the terminal is said to have; what is not of this encoding is replaced and counted."""
    from orrery.data.encodings import find_encoding
    from orrery.data.text import as_utf_8, stream_pieces

    name, given = "standard input", io.BytesIO(sys.stdin.buffer.read())
    text = "".join(stream_pieces(as_utf_8(given, name, tally, find_encoding(encoding)), name, tally))
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def _reading(tally: Any, examples: Any) -> list[str]:
    """What was lost of a table's or input's texts, in words."""
    from orrery.core.progress import counted

    found = []
    if examples.cut:
        found.append(f"{counted(examples.cut, 'row')} cut to {examples.spec.length} tokens")
    return [*found, *tally.notes()]


def evaluate(
    model: Path = typer.Argument(..., help="A folder that `orrery finetune` wrote."),
    table: str = typer.Argument(..., help="A table with the model's columns and its labels."),
    against: Path | None = typer.Option(None, "--against", help="Another fine-tuned model, compared row by row."),
    header: bool = typer.Option(True, "--header/--no-header", help="Whether the first row of a CSV names its columns."),
    encoding: str = typer.Option("", "--encoding", help="Of the table or input; else that of the training table."),
    truncate: bool = typer.Option(False, "--truncate", help="Cut texts that are too long in place of refusing them."),
    as_json: bool = typer.Option(False, "--json", help="For machines."),
) -> None:
    """Figures of a fine-tuned model on a table, with intervals over its rows.

    Example:  orrery evaluate runs/stars test.csv --against runs/other
    """
    from orrery.data.records import read_table
    from orrery.evaluate.predictions import paired_interval
    from orrery.methods.finetune import check_tags
    from orrery.methods.fitted import load_fitted

    fitted = load_fitted(model)
    rows = read_table(table, header=header, encoding=encoding or fitted.encoding)
    examples = fitted.encode(rows, truncate=truncate)
    judged = fitted.judge(examples, quiet=as_json)
    figures = {name: value.to_dict() for name, value in judged.measured().items()}
    tags = check_tags(fitted.spec, {"train": rows}, repair=True)
    notes = [*judged.notes, *filter(None, [tags]), *_reading(rows.tally, examples)]
    found: dict[str, Any] = {"rows": len(rows), "figures": figures, "notes": notes}
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
    for note in found["notes"]:
        output.remark(f"note: {note}")
