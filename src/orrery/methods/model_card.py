"""The card of a fine-tuned model: what it is for, what it was made of, how good it is, what it cost, what it cannot do.

Every number is the run's own, with its interval and what it was measured on; nothing is promised that was not measured.
The sections are those of model cards (1810.03993), as far as a machine can fill them in honestly.
"""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

from orrery.data.encodings import UTF_8
from orrery.data.examples import NAMED
from orrery.data.labelled import read_label
from orrery.data.records import Table
from orrery.data.text import named
from orrery.evaluate.tasks import LOWER, Judged
from orrery.methods.fitted import Fitted
from orrery.models.encoder_decoder import PairReader

WORDS = {
    "classification": "one of the labels",
    "multi-label": "any of the labels",
    "regression": "a number",
    "ordinal": "a grade",
    "tagging": "a tag for every word",
    "text-to-text": "a text",
    "question-answering": "a passage of the text",
    "multiple-choice": "one of the choices of a row",
}
FEW = 200  # items below which a figure says little


def write_card(
    result: dict[str, Any], record: dict[str, Any], fitted: Fitted, judged: dict[str, Judged], tables: dict[str, Table]
) -> str:
    """The card as Markdown."""
    spec = fitted.spec
    reads = f"`{spec.text}`" + (f" and `{spec.pair}`" if spec.pair else "")
    reads += f" and the choices in {', '.join(f'`{column}`' for column in spec.choices)}" if spec.choices else ""
    reads += " with its encoder and its decoder" if isinstance(fitted.model, PairReader) else ""
    lines = [
        f"# {result['source']}, fine-tuned for {spec.kind}",
        "",
        f"Reads {reads}, answers with {WORDS[spec.kind]}"
        + (f": {_listed(spec.names)}." if spec.kind in NAMED else ".")
        + f" {result['parameters'] / 1e6:.2f} M parameters, "
        + (
            "fine-tuned from pre-trained weights."
            if result["pretrained"]
            else "trained from drawn weights on this table alone."
        ),
        *_teacher(result),
        *_words(result),
        "",
        "## Use",
        "",
        "```",
        'orrery predict FOLDER --text "..."           # FOLDER holds this card'
        if not (spec.pair or spec.choices)
        else "orrery predict FOLDER --input FILE.csv",
        "orrery evaluate FOLDER FILE.csv",
        "```",
        "",
        "## Data",
        "",
        *_data(tables, fitted),
        "",
        "## Figures",
        "",
        *_figures(result, judged),
        *_baseline(result),
        "",
        "## Cost",
        "",
        *_cost(result, record),
        "",
        "## Limits",
        "",
        *(f"* {text}" for text in _limits(result, fitted, judged)),
        "",
        f"Made by `{_typed(record['command'])}`; run {record['id']}, {record['created']}.",
        "",
    ]
    return "\n".join(lines)


def _typed(command: list[str]) -> str:
    """A command as a person would type it: the program by its name, not by its place on this machine."""
    name = Path(command[0]).name if command else ""
    return shlex.join(["orrery" if name == "__main__.py" else name, *command[1:]]) if command else ""


def _teacher(result: dict[str, Any]) -> list[str]:
    found = result.get("teacher")
    if not found:
        return []
    name, value = next(iter(found["figures"].items()))
    said = f"{name.replace('_', ' ')} {value['value']:.4f} on the {found['table']} rows"
    return ["", f"It learnt from a teacher's answers too: `{found['folder']}` ({found['parameters'] / 1e6:.2f} M parameters), {said}."]


def _words(result: dict[str, Any]) -> list[str]:
    found = result.get("words")
    if not found:
        return []
    name, value = next(iter(found["network"].items()))
    said = f"{name.replace('_', ' ')} {value['value']:.4f} on the {found['table']} rows"
    return ["", f"A linear model on {found['features']:,} words and word pairs answers with it; its share, chosen on the validation rows, is "
                f"{found['share']:.2f}. The network alone: {said}."]  # fmt: skip


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:12])
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _data(tables: dict[str, Table], fitted: Fitted) -> list[str]:
    spec = fitted.spec
    lines = [
        "| side | table | rows |" + (" labels |" if spec.kind in ("classification", "ordinal") else ""),
        "|---|---|---|" + ("---|" if spec.kind in ("classification", "ordinal") else ""),
    ]
    for side, table in tables.items():
        line = f"| {side} | {table.name} | {len(table)} |"
        if spec.kind in ("classification", "ordinal"):
            counts = Counter(read_label(row, spec)[0] for row in table.rows)
            line += (
                " "
                + ", ".join(f"{name} {count}" for name, count in counts.most_common(6))
                + (" ... |" if len(counts) > 6 else " |")
            )
        lines.append(line)
    read = {side: named(table.tally.encoding) for side, table in tables.items()}
    if any(name != named(UTF_8) for name in read.values()):
        lines += ["", "Read as " + ", ".join(f"{name} ({side})" for side, name in read.items()) + "."]
    lines += [
        "",
        f"Tokenizer {fitted.tokenizer.name} ({fitted.tokenizer.vocab_size} ids); at most {spec.length} tokens of an example.",
    ]
    return lines


def _figures(result: dict[str, Any], judged: dict[str, Judged]) -> list[str]:
    lines = ["| figure | " + " | ".join(judged) + " |", "|---|" + "---|" * len(judged)]
    for name in next(iter(judged.values())).figures:
        cells = []
        for side in judged:
            found = result["figures"][side].get(name)
            cells.append("" if found is None else f"{found['value']:.4f} ({found['low']:.4f} to {found['high']:.4f})")
        lines.append(
            f"| {name.replace('_', ' ')}{' (less is better)' if name in LOWER else ''} | " + " | ".join(cells) + " |"
        )
    lines += ["", "In brackets: 95 % of 2,000 draws of the rows. They say how far another sample of rows could move the figure, not how",
              "far another seed of training could."]  # fmt: skip
    if "validation" in judged and len(judged) > 1:
        chose = "the epoch and the words' share" if "words" in result else "the epoch"
        lines.append(f"The validation figures chose {chose} and are therefore flattered; the test figures are not.")
    return lines


def _baseline(result: dict[str, Any]) -> list[str]:
    found = result.get("baseline")
    if not found:
        return []
    gap = found["difference"]
    said = f"{gap['figure'].replace('_', ' ')} {gap['value']:+.4f} ({gap['low']:+.4f} to {gap['high']:+.4f}) on the {found['table']} rows"
    own = found["figures"][gap["figure"]]["value"]
    if found["beaten"]:
        return ["", f"It beats {found['name']} ({own:.4f}): {said}."]
    return [
        "",
        f"**It does not beat {found['name']}** ({own:.4f}): {said}. Take that instead, unless you need what it cannot do.",
    ]


def _cost(result: dict[str, Any], record: dict[str, Any]) -> list[str]:
    machine = record["environment"]
    memory = result["peak_memory_bytes"]
    text = f"{result['seconds']:.1f} s of training (measured), epoch {result['best_epoch']} of {result['epochs']} was the best"
    if memory:
        text += f"; at most {memory / 1e6:.0f} MB of memory (measured, the whole process)"
    return [
        text + ".",
        f"Machine: {machine['cpu']}, {machine['cores_allowed']} cores; torch {machine['packages'].get('torch')}.",
    ]


def _limits(result: dict[str, Any], fitted: Fitted, judged: dict[str, Judged]) -> list[str]:
    last = list(judged.values())[-1]
    count = len(next(iter(last.items.values())))
    found = [*result["notes"]]
    if count < FEW:
        found.append(f"The figures stand on {count} rows only; see how wide their intervals are.")
    if "test" not in judged:
        found.append(
            "No test table was given: the figures are of the rows that chose the epoch, and flattered by that."
        )
    if not result["pretrained"]:
        found.append("It knows no language beyond its training table; words it never saw there mean little to it.")
    if fitted.spec.kind in NAMED:
        found.append("It knows no other labels than those above, and answers with one of them whatever it is given.")
    found.append(
        "One seed of training. Nothing was measured on other texts, groups of people, or languages than the tables'."
    )
    return found
