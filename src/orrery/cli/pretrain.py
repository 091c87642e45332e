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
    corpus: str = typer.Option(..., "--corpus", help="stdlib, a file, a folder, a glob, FILE.jsonl:FIELD, or TABLE.csv:COLUMN."),
    size: str = typer.Option("micro", help="nano, micro, tiny, small or base."),
    tokenizer: str = typer.Option(
        "wordpiece:8192,lower", help="wordpiece:8192, bpe:8192, bytes, a folder; marks are added."
    ),
    objective: str | None = typer.Option(
        None, help="masked-lm, span-corruption, denoising, prefix-lm; several as span-corruption+prefix-lm:0.5; by the model otherwise."
    ),
    teacher: str | None = typer.Option(
        None, "--teacher", help="A folder of a model to learn from; `distilbert` begins with its layers. Its tokenizer is taken."
    ),
    recipe: str = typer.Option(
        "", "--recipe", help="hinton, distilbert, distilcamembert, tinybert, patient, minilm, minilm-1; --set objective.settings.soft=1 changes it."
    ),
    layers: str = typer.Option("", "--layers", help="Layers of the teacher that the student begins with, as 0,2,4."),
    also: str = typer.Option("", "--also", help="Going on with a folder: another corpus to compare before and after on."),
    budget: str = typer.Option("2Mtok", help="2Mtok, 1e13flop, 2min or 500steps."),
    seed: int = typer.Option(0, help="Of parameters, noise and data order."),
    settings: list[str] = typer.Option([], "--set", help="Any setting: --set data.length=128 --set optim.lr=5e-4."),
    encoding: str = typer.Option("", "--encoding", help="Of a corpus that is not UTF-8: cp1250, latin-1, utf-16 ...; or cp1250:CORPUS."),
    strict: bool = typer.Option(
        False, "--strict", help="Refuse text that is not of its encoding in place of replacing and counting it."
    ),
    quiet: bool = typer.Option(False, "--quiet", help="No progress."),
    as_json: bool = typer.Option(False, "--json", help="The result for machines."),
) -> None:
    """Pre-train on a corpus: tokenizer, pretext task and rate are chosen, and said; each can be set.

    Example:  orrery pretrain bert --size micro --corpus polish/ --budget 4Mtok --out runs/polish-bert

    Example:  orrery pretrain distilbert --teacher runs/polish-bert --corpus polish/ --out runs/polish-small
    """
    from orrery.core.config import parse_overrides
    from orrery.data.encodings import with_encoding
    from orrery.methods.pretrain import pretrain as run

    typed: dict[str, Any] = {
        "model.size": size,
        "data.corpus": with_encoding(corpus, encoding),
        "data.tokenizer": tokenizer,
        "data.strict": strict,
        "budget": budget,
        "seed": seed,
        "data.length": 127,
        **parse_overrides(settings),
    }
    taken = _numbers(layers) if layers else None
    also = also and with_encoding(also, encoding)
    result = run(
        model, out, typed, objective=objective, teacher=teacher, recipe=recipe, layers=taken, also=also, quiet=quiet or as_json
    )
    if as_json:
        output.say_json(result)
        return
    print_result(result, out)
    if result.get("status") == "interrupted":
        output.remark("interrupted: the same command continues it")
        raise typer.Exit(130)
    if result.get("domains"):
        cells = [
            (d["role"], d["corpus"], f"{d['before']:.4f}", f"{d['after']:.4f}", f"{d['difference']:+.4f} {_between(d['low'], d['high'])}")
            for d in result["domains"]
        ]
        heads = ("", "held-out text of", "before", "after", "difference, 95 % over windows")
        output.say_table(heads, cells, right=(2, 3))
        print("nats per target; less is better")
    print(f"fine-tune it:  orrery finetune {out} --train FILE.csv --text COLUMN --label COLUMN --out FOLDER")


def _between(low: float | None, high: float | None) -> str:
    return "(too little text for an interval)" if low is None or high is None else f"({low:+.4f} to {high:+.4f})"


def _numbers(text: str) -> list[int]:
    from orrery.core.errors import ConfigError

    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"--layers are numbers with commas between them, such as 0,2,4, not '{text}'") from None
