"""The commands, gathered. Each module imports the rooms it reads only when its command runs."""

from __future__ import annotations

import typer

from orrery.cli import (
    catalogue,
    comparing,
    doctor,
    export,
    finetune,
    new,
    ngram_texts,
    papers,
    pretrain,
    runs,
    serve,
    text,
    tokenizer,
    training,
)

app = typer.Typer(
    name="orrery",
    help="Every language architecture as a working model, and a fair way to compare them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    """Every language architecture as a working model, and a fair way to compare them."""
    if version:
        from orrery import __version__

        print(__version__)
        raise typer.Exit


app.command("list")(catalogue.list_names)
app.command("show")(catalogue.show)
app.command("train")(training.train)
app.command("eval")(training.evaluate)
app.command("generate")(text.generate)
app.command("compare")(comparing.compare)
app.command("pretrain")(pretrain.pretrain)
app.command("finetune")(finetune.finetune)
app.command("predict")(finetune.predict)
app.command("evaluate")(finetune.evaluate)
app.command("export")(export.export)
app.command("serve")(serve.serve)
app.command("doctor")(doctor.doctor)
app.add_typer(new.app, name="new")
app.add_typer(runs.app, name="runs")
app.add_typer(papers.app, name="papers")
app.add_typer(ngram_texts.app, name="ngram")
app.add_typer(tokenizer.app, name="tokenizer")
