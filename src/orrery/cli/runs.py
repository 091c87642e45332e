"""`orrery runs`: what has been run, read from the run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import typer

from orrery.cli import output

app = typer.Typer(help="Runs: list, show, rebuild the index, import from other machines.", no_args_is_help=True)
ROOT = typer.Option(Path("runs"), "--root", help="The folder that holds the runs.")
JSON = typer.Option(False, "--json", help="For machines.")


@app.command("list")
def list_runs(
    status: Optional[str] = typer.Option(None, help="running, done, failed, oom or interrupted."),  # noqa: UP045
    name: str = typer.Option("*", help="A wildcard over names."),
    limit: int = typer.Option(50, help="At most so many, newest first."),
    root: Path = ROOT,
    as_json: bool = JSON,
) -> None:
    """Runs, newest first; damaged folders are named below the table.

    Example:  orrery runs list --status done
    """
    from orrery.runs.store import RunStore

    store = RunStore(root)
    records = store.list(status=status, name=name, limit=limit)
    problems = store.problems()
    if as_json:
        output.say_json({"runs": [r.to_dict() for r in records], "problems": [p.__dict__ for p in problems], "notes": store.notes})
        return
    rows = []
    for r in records:
        quality = r.result.get("bits_per_byte")
        rows.append((r.folder, r.status, "" if r.seed is None else r.seed, "" if quality is None else f"{quality:.4f}", r.created))
    output.say_table(("run", "status", "seed", "bits/byte", "created"), rows, right=(2, 3))
    for problem in problems:
        output.remark(f"skipped '{problem.folder}': {problem.why}")
    for note in store.notes:
        output.remark(note)


@app.command("show")
def show_run(
    name: str = typer.Argument(..., help="A folder name, an id, or its beginning."), root: Path = ROOT, as_json: bool = JSON
) -> None:
    """One run: what it was, how it ended, its numbers; every checksum is verified.

    Example:  orrery runs show transformer-3fa9
    """
    from orrery.runs.store import RunStore

    run = RunStore(root).verify(name)
    result = run.result()
    if as_json:
        output.say_json({"record": run.record, "result": result})
        return
    for key in ("id", "name", "status", "created", "finished", "seed", "config_hash"):
        print(f"{key:12} {run.record.get(key)}")
    print(f"{'command':12} {' '.join(run.record.get('command') or [])}")
    print(f"{'folder':12} {run.path}")
    for key, value in (result or {}).items():
        if isinstance(value, (int, float, str)):
            print(f"{key:24} {value:.6g}" if isinstance(value, float) else f"{key:24} {value}")


@app.command("rebuild")
def rebuild(root: Path = ROOT, as_json: bool = JSON) -> None:
    """Make the index anew from the run folders, which are the truth.

    Example:  orrery runs rebuild
    """
    from orrery.runs.store import RunStore

    store = RunStore(root)
    number = store.rebuild()
    problems = store.problems()
    if as_json:
        output.say_json({"folders": number, "problems": [p.__dict__ for p in problems]})
        return
    print(f"index of {number} run folders rebuilt under '{root}'")
    for problem in problems:
        output.remark(f"skipped '{problem.folder}': {problem.why}")


@app.command("import")
def import_runs(path: Path = typer.Argument(..., help="A folder with run folders."), root: Path = ROOT, as_json: bool = JSON) -> None:
    """Copy verified run folders from another machine or disk; duplicates are named, nothing is overwritten.

    Example:  orrery runs import /media/stick/runs
    """
    from orrery.runs.store import RunStore

    report = RunStore(root).import_folders(path)
    if as_json:
        output.say_json(report.__dict__)
        return
    for line in report.sentences():
        print(line)
