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
    corpus: str = typer.Option("stdlib", help="stdlib, a file, a folder, a glob, or FILE.jsonl:FIELD."),
    budget: str = typer.Option("", help="Of each run: 1Mtok, 20Mtok, 1e13flop, 2min, 500steps."),
    seeds: int = typer.Option(3, help="Paired seeds; a verdict needs six or more."),
    size: str = typer.Option("nano", help="nano, micro, tiny, small or base: equal parameters for all."),
    baseline: str = typer.Option("", help="Whom the others are held against; by default transformer, else the first."),
    max_params: Optional[float] = typer.Option(None, help="Your limit: all parameters."),  # noqa: UP045
    max_state: Optional[float] = typer.Option(None, help="Your limit: bytes of state per sequence at the longest length."),  # noqa: UP045
    max_ms_per_token: Optional[float] = typer.Option(None, help="Your limit: milliseconds per decoded token."),  # noqa: UP045
    jobs: Optional[int] = typer.Option(None, help="Worker processes; by default whatever is measured to be quicker."),  # noqa: UP045
    tune: bool = typer.Option(False, "--tune", help="Sweep every architecture's learning rate now."),
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
    """
    from orrery.compare.conduct import Parts
    from orrery.compare.protocol import Settings
    from orrery.compare.reference import nearest
    from orrery.compare.report import LiveView, write_report
    from orrery.compare.session import DEFAULT
    from orrery.compare.session import compare as run
    from orrery.core.config import parse_overrides

    shipped = nearest(size, corpus)
    if shipped is not None and not as_json:
        show_reference(shipped)
    command = "orrery " + shlex.join(sys.argv[1:]) if len(sys.argv) > 1 else "orrery compare"
    parts = Parts(costs=False, capabilities=(), floors=True) if quick else Parts()
    with LiveView(reference=shipped) as view:
        result = run(
            architectures or DEFAULT,
            corpus,
            budget or Settings.budget,
            seeds,
            size,
            baseline=baseline or None,
            max_params=max_params,
            max_state=max_state,
            max_ms_per_token=max_ms_per_token,
            jobs=jobs,
            tune=tune,
            root=root,
            out=out,
            observer=view,
            command=command,
            parts=parts,
            **parse_overrides(settings),
        )
    paths = write_report(result, out or root / f"comparison-{result.protocol.hash}", shipped)
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
