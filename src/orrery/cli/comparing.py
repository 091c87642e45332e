"""`orrery compare`: the main job, and how its result reaches a person."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, Optional

import typer

from orrery.cli import output


def compare(
    architectures: Optional[list[str]] = typer.Argument(None, help="Names, patterns, or files of yours; by default five architectures."),  # noqa: UP045
    task: str = typer.Option("", "--task", help="FILE.csv, .jsonl, ...: compare over a task, fine-tuned on this table (see `orrery finetune`)."),
    text: str = typer.Option("text", "--text", help="With --task: the column of the texts."),
    label: str = typer.Option("label", "--label", help="With --task: the column of the labels."),
    pair: str = typer.Option("", "--pair", help="With --task: the column of a second text; of questions."),
    choices: str = typer.Option("", "--choices", help="With --task: the columns of choices, separated by commas, or one of lists."),
    kind: str = typer.Option("", "--kind", help="With --task: classification, regression, tagging, ...; guessed otherwise."),
    validation: str = typer.Option("", "--validation", help="With --task: a table that chooses the epoch; else held out."),
    test: str = typer.Option("", "--test", help="With --task: a table that chooses nothing; else held out."),
    corpus: str = typer.Option("stdlib", help="stdlib, a file, a folder, a glob, FILE.jsonl:FIELD, or TABLE.csv:COLUMN."),
    encoding: str = typer.Option("", "--encoding", help="Of a table or corpus that is not UTF-8: cp1250, latin-1, utf-16 ..."),
    budget: str = typer.Option("", help="Of each run: 1Mtok, 20Mtok, 1e13flop, 2min, 500steps; with --task also 5epochs."),
    seeds: int = typer.Option(3, help="Paired seeds; a verdict needs six or more."),
    size: str = typer.Option("", help="nano, micro, tiny, small or base: equal parameters for all; by default nano, with --task micro."),
    baseline: str = typer.Option("", help="Whom the others are held against; by default transformer, else the first."),
    max_params: Optional[float] = typer.Option(None, help="Your limit: all parameters."),  # noqa: UP045
    max_state: Optional[float] = typer.Option(None, help="Your limit: bytes of state per sequence at the longest length."),  # noqa: UP045
    max_ms_per_token: Optional[float] = typer.Option(None, help="Your limit: milliseconds per decoded token."),  # noqa: UP045
    jobs: Optional[int] = typer.Option(None, help="Worker processes; by default whatever is measured to be quicker."),  # noqa: UP045
    tune: Optional[bool] = typer.Option(None, "--tune/--no-tune", help="Sweep every architecture's learning rate now; with --task by default."),  # noqa: UP045
    settings: list[str] = typer.Option([], "--set", help="tokenizer, length, batch, margin, sample, noise, as key=value."),
    root: Path = typer.Option(Path("runs"), "--root", help="Where runs and results are kept; the same command continues them."),
    out: Optional[Path] = typer.Option(None, "--out", help="Folder of the report."),  # noqa: UP045
    quick: bool = typer.Option(False, "--only-text", help="Leave out costs and capability tasks."),
    as_json: bool = typer.Option(False, "--json", help="The whole result for machines; nothing else on stdout."),
) -> None:
    """Compare language-model architectures fairly on this machine: quality, cost, capability, with intervals.

    Without arguments it takes ten minutes or so, says so first, can be interrupted with Ctrl-C, and is continued
    by the same command.

    Example:  orrery compare     orrery compare ./my_mixer.py transformer

    Example:  orrery compare mamba2 transformer "mamba2*3 + attention" --budget 5Mtok --seeds 6

    Example:  orrery compare bert modernbert lstm --task reviews.csv --text review --label stars --seeds 6 --out runs/stars
    """
    if task:
        asked = {"jobs": jobs, "max-params": max_params, "max-state": max_state, "max-ms-per-token": max_ms_per_token}
        how = (budget, seeds, size or "micro", baseline, settings, tune is not False)
        tables = (task, validation, test, encoding)
        over_task(architectures or [], tables, (kind, text, pair, label, choices), how, asked, out or root / "task", as_json)
        return
    from orrery.compare.conduct import Parts
    from orrery.compare.protocol import Settings
    from orrery.compare.reference import nearest
    from orrery.compare.report import LiveView
    from orrery.compare.session import DEFAULT
    from orrery.compare.session import compare as run
    from orrery.core.config import parse_overrides
    from orrery.data.encodings import with_encoding

    shipped = nearest(size := size or "nano", corpus)
    if shipped is not None and not as_json:
        show_reference(shipped)
    command = "orrery " + shlex.join(sys.argv[1:]) if len(sys.argv) > 1 else "orrery compare"
    parts = Parts(costs=False, capabilities=(), floors=True) if quick else Parts()
    with LiveView(reference=shipped) as view:
        result = run(
            architectures or DEFAULT,
            with_encoding(corpus, encoding),
            budget or Settings.budget,
            seeds,
            size,
            baseline=baseline or None,
            max_params=max_params,
            max_state=max_state,
            max_ms_per_token=max_ms_per_token,
            jobs=jobs,
            tune=bool(tune),
            root=root,
            out=out,
            observer=view,
            command=command,
            parts=parts,
            **parse_overrides(settings),
        )
    tell(result, out or root / f"comparison-{result.protocol.hash}", shipped, as_json)


def over_task(
    architectures: list[str], tables: tuple[str, ...], columns: tuple[str, str, str, str, str], how: tuple[str, int, str, str, list[str], bool],
    foreign: dict[str, Any], out: Path, as_json: bool,
) -> None:
    """`orrery compare ... --task`.

    Args:
        tables: training, validation and test; empty where there is none; and the encoding of all, "": UTF-8.
        columns: kind, text, pair, label, choices. how: budget, seeds, size, baseline, settings, whether rates are swept.
        foreign: options that only comparisons on text know.
    """
    from orrery.cli.finetune import task_of
    from orrery.compare.task_page import write_task_report
    from orrery.compare.task_report import sentences, table
    from orrery.compare.tasks import compare_tasks
    from orrery.core.errors import ConfigError
    from orrery.data.records import read_table

    if given := next((name for name, value in foreign.items() if value), None):
        raise ConfigError(f"--{given} belongs to comparisons on text; leave it out with --task")
    read = [read_table(name, encoding=tables[-1]) if name else None for name in tables[:-1]]
    assert read[0] is not None
    kind, text, pair, label, choices = columns
    spec = task_of(read[0], kind or None, (text, pair, label), choices, "--kind")
    command = "orrery " + shlex.join(sys.argv[1:])
    result = compare_tasks(
        architectures, read[0], spec, out, how[1], task_settings(*how), validation=read[1], test=read[2], command=command, tell=output.remark
    )
    paths = write_task_report(result, out)
    if as_json:
        output.say_json(result.to_dict())
    else:
        heads, rows = table(result)
        output.say_table(heads, rows, right=(1, 4, 5, 6, 7))
        for sentence in [*sentences(result), *(f"note: {note}" for note in result.notes)]:
            print(sentence)
        print(f"\nreport   {paths['report.html']}")
    if result.status != "complete":
        output.remark("not complete: the same command goes on where this one stopped")
        raise typer.Exit(1 if any(run.status in ("failed", "oom") for run in result.runs) else 130)


def task_settings(budget: str, seeds: int, size: str, baseline: str, settings: list[str], tune: bool) -> Any:
    """Settings of a comparison over a task from what was typed."""
    from orrery.compare.tasks import TaskSettings
    from orrery.core.config import parse_overrides
    from orrery.core.errors import ConfigError, suggest

    own: dict[str, Any] = {"size": size, "budget": budget, "baseline": baseline, "tune": tune}
    rates: dict[str, float] = {}
    model: dict[str, Any] = {}
    training: dict[str, Any] = {}
    mine = ("tokenizer", "margin", "held_out", "test_share", "seconds", "isolate")
    theirs = ("batch", "warmup", "decay", "balance", "truncate", "repair", "threads")
    for key, value in parse_overrides(settings).items():
        if key == "lr" or key.startswith("lr."):
            rates[key.removeprefix("lr").removeprefix(".")] = float(value)
        elif key.startswith("model."):
            model[key.removeprefix("model.")] = value
        elif key in mine:
            own[key] = value
        elif key in theirs:
            training[key] = value
        else:
            known = ("lr", *mine, *theirs)
            raise ConfigError(f"a comparison over a task has no setting '{key}'.{suggest(key, known)} It has {', '.join(known)} and model.KEY")
    return TaskSettings(**own, rates=rates, model=model, finetune=training)


def tell(result: Any, folder: Path, shipped: Any, as_json: bool) -> None:
    """Write the report and say what it came to."""
    from orrery.compare.report import write_report

    paths = write_report(result, folder, shipped)
    if as_json:
        output.say_json(result.to_dict())
    else:
        show_result(result)
        print(f"\nreport   {paths['report.html']}")
    if result.status != "complete":
        output.remark("not complete: the same command goes on where this one stopped")
        raise typer.Exit(130)


def show_reference(shipped: Any) -> None:
    """What longer runs of this protocol came to, before anything is measured here."""
    from orrery.compare.report import render_text

    print("Reference, shipped with the package (made elsewhere, longer; yours follows):\n")
    print(render_text(shipped, width=_columns()))
    print()


def show_result(result: Any) -> None:
    """The table, in colour on a terminal."""
    from orrery.compare.report import render_table, render_text

    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(render_table(result))
    else:
        print(render_text(result, width=_columns()))


def _columns() -> int:
    import shutil

    return max(72, min(shutil.get_terminal_size((100, 24)).columns, 140))
