"""`orrery train` and `orrery eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import typer

from orrery.cli import output
from orrery.cli.text import stretched, trained_length, weights_folder


def train(
    model: str = typer.Argument(..., help="A name of `orrery list`, or a pattern such as 'mamba2*3 + attention'."),
    out: Path = typer.Option(..., "--out", "-o", help="The run's folder. The same command continues an interrupted run."),
    size: str = typer.Option("micro", help="nano, micro, tiny, small or base."),
    corpus: str = typer.Option("stdlib", help="stdlib, a file, a folder, a glob, FILE.jsonl:FIELD, or TABLE.csv:COLUMN."),
    tokenizer: str = typer.Option("bytes", help="bytes, chars, bpe:8192, unigram:8192, or a tokenizer.json."),
    budget: str = typer.Option("2Mtok", help="2Mtok, 1e13flop, 2min or 500steps."),
    seed: int = typer.Option(0, help="Of parameters and data order."),
    lr: Optional[float] = typer.Option(None, help="Peak learning rate; by default the recorded one of this architecture."),  # noqa: UP045
    settings: list[str] = typer.Option([], "--set", help="Any other setting, as key=value: --set data.length=512 --set model.canon=abcd."),
    encoding: str = typer.Option("", "--encoding", help="Of a corpus that is not UTF-8: cp1250, latin-1, utf-16 ...; or cp1250:CORPUS."),
    strict: bool = typer.Option(False, "--strict", help="Refuse text that is not of its encoding in place of replacing and counting it."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress."),
    as_json: bool = typer.Option(False, "--json", help="The result for machines."),
) -> None:
    """Train one model, or continue where an interrupted run stopped.

    Example:  orrery train transformer --size micro --corpus stdlib --budget 2Mtok --seed 1 --out runs/first
    """
    from orrery.data.encodings import with_encoding
    from orrery.train import train as run

    config = training_config(model, size, with_encoding(corpus, encoding), tokenizer, budget, seed, lr, settings, strict)
    result = run(config, out, quiet=quiet or as_json)
    if as_json:
        output.say_json(result)
        return
    print_result(result, out)
    if result.get("status") == "interrupted":
        output.remark("interrupted: the same command continues it")
        raise typer.Exit(130)


def training_config(
    model: str, size: str, corpus: str, tokenizer: str, budget: str, seed: int, lr: float | None, settings: list[str], strict: bool
) -> Any:
    """A TrainConfig from what was typed; `model.KEY=VALUE` that is no field of the spec is a setting of the model."""
    from orrery.core.config import field_types, parse_overrides
    from orrery.train import ModelSpec, TrainConfig

    typed: dict[str, Any] = {
        "model.name": model,
        "model.size": size,
        "data.corpus": corpus,
        "data.tokenizer": tokenizer,
        "data.strict": strict,
        "budget": budget,
        "seed": seed,
    }
    own: dict[str, Any] = {}
    for key, value in parse_overrides(settings).items():
        if key.startswith("model.") and key.removeprefix("model.") not in field_types(ModelSpec):
            own[key.removeprefix("model.")] = value
        else:
            typed[key] = value
    typed["optim.lr"] = lr if lr is not None else typed.get("optim.lr", recorded_rate(model, size))
    config = TrainConfig().replace(**typed)
    return config.replace(**{"model.settings": {**config.model.settings, **own}})


def recorded_rate(model: str, size: str) -> float:
    """The learning rate that the tool's own sweep found for this architecture, or the nearest recorded one's."""
    from orrery.compare.rates import recorded

    return float(recorded(model, size).value)


def print_result(result: dict[str, Any], out: Path) -> None:
    """The end of a run in a few lines, every number with its unit."""
    validated = result.get("validation") or {}
    held_out = f"{{:.4f}} {validated.get('unit', 'nats per target')}"  # of a pretext task
    parts = ", ".join(f"{name} {value:.4f}" for name, value in validated.get("parts", {}).items())
    rows = [
        ("status", result.get("status")),
        ("validation", _number(result.get("bits_per_byte"), "{:.4f} bits per byte") or _number(validated.get("loss"), held_out)),
        ("of it", parts),
        ("frequencies", _number(result.get("frequencies"), "{:.4f} nats per target, of a model that knows no more than how frequent tokens are")),
        ("trained on", _number(result.get("tokens"), "{:,.0f} tokens") + _number(result.get("steps"), " in {:,.0f} steps")),
        ("speed", _number(result.get("tokens_per_second"), "{:,.0f} tokens/s, measured without warm-up")),
        ("time", _number(result.get("seconds"), "{:,.1f} s")),
        ("peak memory", output.size(result["peak_memory_bytes"]) if result.get("peak_memory_bytes") else ""),
        ("parameters", _number(result.get("parameters"), "{:,.0f} without embedding and head")),
        ("folder", str(out)),
    ]
    for name, value in rows:
        if value:
            print(f"{name:12} {value}")


def _number(value: Any, form: str) -> str:
    return "" if value is None else form.format(value)


def evaluate(
    model: Path = typer.Argument(..., help="A folder of weights, or the folder of a run."),
    corpus: str = typer.Option("stdlib", help="What to read: its validation split is scored."),
    sample: int = typer.Option(0, help="Bytes of whole documents to score; 0 for the whole split. With --lengths: of the longest."),
    length: int = typer.Option(256, help="Tokens of a window; documents are cut into windows, each read from an empty state."),
    batch: int = typer.Option(16, help="Windows at a time."),
    stream: bool = typer.Option(False, "--stream", help="Carry the state from window to window through each document."),
    lengths: bool = typer.Option(False, "--lengths", help="Bits per byte by position in the document, state carried."),
    longest: int = typer.Option(65536, help="With --lengths and --state: read documents up to this position."),
    least: int = typer.Option(0, help="With --lengths: only documents of at least so many tokens."),
    state: bool = typer.Option(False, "--state", help="Statistics of the state over time (2410.07145), state carried."),
    policy: str = typer.Option("", help="Between windows: slide:512, normalise:1.5x, normalise:40 or restart:256."),
    decay: float = typer.Option(1.0, help="Forget more: the exponent of every token's decay."),
    insertion: float = typer.Option(1.0, help="Remember less: the factor of what is written into the state."),
    pairs: list[str] = typer.Option([], "--pairs", help="In place of a corpus: minimal pairs, FILE.jsonl[.gz] with sentence_good and sentence_bad."),
    rope: str = typer.Option("", help="Scale rotary positions: 'yarn(factor=4)', linear, dynamic, llama3; none: as they are without."),
    paired: bool = typer.Option(False, "--paired", help="With --lengths and a policy, forgetting or --rope: also without, and the difference."),
    strict: bool = typer.Option(False, "--strict", help="Refuse text that is not UTF-8."),
    as_json: bool = typer.Option(False, "--json", help="For machines, with every document's score."),
) -> None:
    """Bits per byte of a trained model on text that it was not trained on.

    Example:  orrery eval runs/first --corpus stdlib     orrery eval runs/first --lengths --policy slide:512

    Example:  orrery eval runs/first --pairs blimp/adjunct_island.jsonl.gz
    """
    if pairs:
        evaluate_pairs(model, pairs, as_json)
        return
    from orrery.data import prepare
    from orrery.generate.engine import saved_tokenizer
    from orrery.generate.policy import create_policy
    from orrery.methods.forget_more import forget_more
    from orrery.models.storage import load

    plain = load(weights_folder(model))
    loaded = stretched(plain, rope, model)
    chosen = create_policy(policy) if policy else None
    data = prepare(corpus, saved_tokenizer(loaded), strict)
    if (decay, insertion) != (1.0, 1.0):
        loaded = forget_more(loaded, decay, insertion)
    if lengths:
        from orrery.evaluate.lengths import by_position, default_edges, difference

        how = (default_edges(longest), least, sample or None, length, batch)
        found: Any = by_position(loaded, data.validation, *how, chosen, quiet=as_json)
        if paired:
            found["without"] = by_position(plain, data.validation, *how, quiet=as_json)
            found["difference"] = difference(found, found["without"])
        if as_json:
            output.say_json(found)
        else:
            print_lengths(found, trained_length(model))
    elif state:
        from orrery.evaluate.memory import state_over_time

        found = state_over_time(loaded, data.validation, longest, batch, length, chosen, quiet=as_json)
        if as_json:
            output.say_json(found)
        else:
            print_state(found)
    else:
        score = _bits(loaded, data.validation, sample, length, batch, stream or chosen is not None, chosen)
        if as_json:
            output.say_json(score)
        else:
            rule = ", state carried" if score.get("rule") else ""
            text = f"({score['bytes']:,} bytes, {score['tokens']:,} tokens of the validation split{rule})"
            print(f"{score['bits_per_byte']:.4f} bits per byte  {text}")
            for row in score.get("activity", ()):
                work = "" if row["work"] is None else f", {row['work']:.1%} of its multiply-adds are not with zeros"
                print(f"layer {row['layer'] + 1}: {row['activity']:.1%} of the units fire{work}")


def evaluate_pairs(model: Path, files: list[str], as_json: bool) -> None:
    """`orrery eval --pairs`."""
    from orrery.evaluate.minimal_pairs import minimal_pairs, read_pairs
    from orrery.generate.engine import saved_tokenizer
    from orrery.models.storage import load

    loaded = load(weights_folder(model))
    found = minimal_pairs(loaded, saved_tokenizer(loaded), [pair for file in files for pair in read_pairs(file)], quiet=as_json)
    if as_json:
        output.say_json(found)
        return
    kinds = [("paradigm", one) for one in found["paradigms"]] + [("field", one) for one in found["fields"]] + [("all", {"name": "", **found})]
    rows = [(kind, r["name"], f"{r['accuracy']:.3f}", f"{r['low']:.3f} to {r['high']:.3f}", r["pairs"], r["ties"]) for kind, r in kinds]
    output.say_table(("", "name", "accuracy", "95 %", "pairs", "ties"), rows, right=(2, 4, 5))
    print(f"mean of {len(found['paradigms'])} paradigms {found['mean_of_paradigms']:.3f}, by {found['score']}; chance is 0.5")


def _bits(model: Any, tokens: Any, sample: int, length: int, batch: int, carried: bool, policy: Any) -> dict[str, Any]:
    from orrery.data import validation_windows
    from orrery.evaluate.activity import activity
    from orrery.evaluate.carried import carried_bits_per_byte
    from orrery.evaluate.language import bits_per_byte

    windows = validation_windows(tokens, length, batch, sample or None)
    if not carried:
        fired = activity(model, windows)
        return {**bits_per_byte(model, windows), **({"activity": fired} if fired else {})}
    return carried_bits_per_byte(model, tokens, windows.documents, length, batch, policy)


def print_lengths(found: dict[str, Any], trained: int | None) -> None:
    """Bits per byte by position as a table; with what it would be without a policy, where that was asked for."""
    headings = ["position", "bits per byte", "95 %", "documents", "targets", "of the training length"]
    rows = []
    for row in found["rows"]:
        beyond = "" if trained is None else "within" if row["to"] <= trained else f"{row['to'] / trained:g} x"
        place, score = f"{row['from']:,} to {row['to']:,}", f"{row['bits_per_byte']:.4f}"
        rows.append([place, score, _span(row), row["documents"], f"{row['targets']:,}", beyond])
    if "difference" in found:
        headings += ["without", "difference", "95 %, paired"]
        for cells, plain, gap in zip(rows, found["without"]["rows"], found["difference"], strict=True):
            cells += [f"{plain['bits_per_byte']:.4f}", f"{gap['difference']:+.4f}", _span(gap)]
    output.say_table(headings, rows, right=range(1, len(headings)))
    many = f"{found['documents']} document{'' if found['documents'] == 1 else 's'}"
    print(f"{many}, state carried through windows of {found['window']}; {found['method']}")


def _span(row: dict[str, Any]) -> str:
    return "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"


def print_state(found: list[dict[str, Any]]) -> None:
    """Statistics of the state at positions that double, as a table; of the fields with a known decay, where there are any."""
    window = found[0]["position"]
    decaying = [r for r in found if r["retention"] is not None]
    kept = [r for r in decaying or found if (r["position"] // window).bit_count() == 1 or r["position"] == found[-1]["position"]]
    keys = ("mean", "variance", "largest", "norm", "largest_norm", "outliers", "retention", "kept")
    rows = [(f"{r['position']:,}", r["layer"], r["field"], *("" if r[key] is None else f"{r[key]:.3g}" for key in keys)) for r in kept]
    output.say_table(("position", "layer", "field", *(key.replace("_", " ") for key in keys)), rows, right=range(3, 11))
    print("norms are of heads; outliers: heads of more than 10 times the median variance; retention: what is left of the first window's")
    print("content, mean over heads; kept: share of heads that keep more than 1 % of it")
