"""`orrery new`: start a file of one's own that works from the first minute."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(help="Start a mixer of your own from a template that works.", no_args_is_help=True)


@app.command("mixer")
def new_mixer(
    name: str = typer.Argument(..., help="A new name in lower case with hyphens, such as my-mixer."),
    folder: Path = typer.Option(Path(), "--folder", help="Where to write."),
) -> None:
    """Write NAME.py, a working mixer with its architecture, and test_NAME.py, its contract checks.

    Example:  orrery new mixer my-mixer && orrery compare ./my_mixer.py transformer
    """
    from orrery.cli.template import write_mixer

    file, test = write_mixer(name, folder)
    print(f"wrote {file} and {test}")
    print(f"  check it:    python -m pytest {test}")
    print(f"  compare it:  orrery compare ./{file} transformer")
