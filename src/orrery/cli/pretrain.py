"""`orrery pretrain`: a corpus and an architecture become an encoder or encoder-decoder to fine-tune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from orrery.cli import output
from orrery.cli.training import print_result


def pretrain(
    model: str = typer.Argument(..., help="bert, modernbert, t5, lstm ...; or a folder, to go on with what it holds."),
    out: Path = typer.Option(
        ..., "--out", "-o", help="The run's folder. The same command continues an interrupted run."
    ),
    corpus: str = typer.Option(..., "--corpus", help="stdlib, a file, a folder, a glob, or FILE.jsonl:FIELD."),
    size: str = typer.Option("micro", help="nano, micro, tiny, small or base."),
    tokenizer: str = typer.Option(
        "wordpiece:8192,lower", help="wordpiece:8192, bpe:8192, bytes, a folder; marks are added."
    ),
    objective: str | None = typer.Option(
        None, help="masked-lm, span-corruption, denoising, prefix-lm; by the model otherwise."
    ),
    budget: str = typer.Option("2Mtok", help="2Mtok, 1e13flop, 2min or 500steps."),
    seed: int = typer.Option(0, help="Of parameters, noise and data order."),
    settings: list[str] = typer.Option([], "--set", help="Any setting: --set data.length=128 --set optim.lr=5e-4."),
    strict: bool = typer.Option(
        False, "--strict", help="Refuse text that is not UTF-8 in place of replacing and counting it."
    ),
    quiet: bool = typer.Option(False, "--quiet", help="No progress."),
    as_json: bool = typer.Option(False, "--json", help="The result for machines."),
) -> None:
    """Pre-train on a corpus: tokenizer, pretext task and rate are chosen, and said; each can be set.

    Example:  orrery pretrain bert --size micro --corpus polish/ --budget 4Mtok --out runs/polish-bert
    """
    from orrery.core.config import parse_overrides
    from orrery.methods.pretrain import pretrain as run

    typed: dict[str, Any] = {
        "model.size": size,
        "data.corpus": corpus,
        "data.tokenizer": tokenizer,
        "data.strict": strict,
        "budget": budget,
        "seed": seed,
        "data.length": 127,
        "data.batch": 32,
        **parse_overrides(settings),
    }
    result = run(model, out, typed, objective=objective, quiet=quiet or as_json)
    if as_json:
        output.say_json(result)
        return
    print_result(result, out)
    if result.get("status") == "interrupted":
        output.remark("interrupted: the same command continues it")
        raise typer.Exit(130)
    print(f"fine-tune it:  orrery finetune {out} --train FILE.csv --text COLUMN --label COLUMN --out FOLDER")
