"""What stands in the page beside table and pictures, as rows of words: protocol, rates, statistics, environment, runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from orrery.compare.report import digits, words
from orrery.compare.report.columns import STATUS
from orrery.compare.result import ComparisonResult

MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December")
Pairs = list[tuple[str, Any]]


@dataclass(frozen=True)
class PlainTable:
    """A table of texts; columns listed in `words` hold sentences and are aligned to the left."""

    title: str
    heads: list[str]
    rows: list[list[str]] = field(default_factory=list)
    words: tuple[int, ...] = ()


def date(created: str) -> str:
    """`2026-11-22T09:30:00+00:00` -> `22 November 2026`; anything else as it is."""
    parts = created[:10].split("-")
    if len(parts) == 3 and all(part.isdigit() for part in parts) and 1 <= int(parts[1]) <= 12:
        return f"{int(parts[2])} {MONTHS[int(parts[1]) - 1]} {parts[0]}"
    return created


def flat(value: Any) -> str:
    """A nested value of a record in one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {flat(item)}" for key, item in sorted(value.items(), key=_name_first)) or digits.ABSENT
    if isinstance(value, (list, tuple)):
        return f"({', '.join(flat(item) for item in value)})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return digits.ABSENT
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _name_first(item: tuple[Any, Any]) -> tuple[bool, str]:
    """Order of a record's fields: its name, then by field, for JSON does not keep the order they were written in."""
    return str(item[0]) != "name", str(item[0])


def lead_facts(result: ComparisonResult) -> Pairs:
    """The few facts under the sentence."""
    p = result.protocol
    out: Pairs = [("Text", p.corpus)]
    size = digits.count(p.target_parameters) if p.target_parameters else ""
    out.append(("Size", f"{p.size}, {size} parameters" if size else p.size))
    tokens = sorted(set(p.tokens.values()))
    if len(tokens) == 1:
        out.append(("Each run", f"{digits.count(tokens[0])} tokens"))
    elif tokens:
        out.append(("Each run", f"{p.budget} ({digits.count(tokens[0])} to {digits.count(tokens[-1])} tokens)"))
    elif p.budget:
        out.append(("Each run", p.budget))
    if p.seeds:
        out.append(("Seeds", str(len(p.seeds))))
    cpu = str(result.environment.get("gpu") or result.environment.get("cpu") or "")
    if cpu:
        cores = result.environment.get("cores_allowed") or result.environment.get("cores")
        out.append(("Machine", f"{cpu.split(' (')[0]}, {cores} cores" if cores and not result.environment.get("gpu") else cpu))
    if result.seconds:
        out.append(("Took", digits.seconds(result.seconds)))
    return out


def protocol(result: ComparisonResult) -> Pairs:
    """What was held equal, in the order in which one asks."""
    p = result.protocol
    validation = [f"{p.validation_bytes:,} bytes"] if p.validation_bytes else []
    validation += [f"{p.validation_documents} documents"] if p.validation_documents else []
    rows: Pairs = [
        ("Held equal", p.equal),
        ("Text", f"{p.corpus} {f'({p.train_bytes:,} bytes to train on)' if p.train_bytes else ''} {p.corpus_hash}".strip()),
        ("Validation sample", ", ".join(validation)),
        ("Tokens", f"{p.tokenizer}, vocabulary {p.vocabulary:,}"),
        ("Size", f"{p.size}{f', {p.target_parameters:,} parameters without embedding and head' if p.target_parameters else ''}"),
        ("Budget per run", f"{p.budget} ({p.budget_kind})" if p.budget else ""),
        ("Step", f"{p.batch} rows of {p.length} tokens"),
        ("Steps", _by_label(p.steps, result)),
        ("Training tokens", _by_label(p.tokens, result)),
        ("Optimizer", flat(p.optimizer) if p.optimizer else ""),
        ("Seeds", ", ".join(str(seed) for seed in p.seeds)),
        ("Baseline", p.baseline),
        ("Margin", f"{p.margin:g} bits per byte{f': {p.margin_reason}' if p.margin_reason else ''}"),
        ("Primary contrasts", f"{p.family} ({p.family_size})" if p.family else ""),
        ("Level", f"{100 * (1 - p.alpha):.0f} % intervals, alpha {p.alpha:g} over the family (Holm)"),
        ("Processes", flat(p.jobs) if p.jobs else ""),
        ("Calibration", flat(p.calibration) if p.calibration else ""),
        ("Protocol hash", p.hash),
    ]
    return [(name, value) for name, value in rows if value]


def _by_label(counts: Mapping[str, int], result: ComparisonResult) -> str:
    """One number where all have it, else one per architecture."""
    found = set(counts.values())
    if len(found) == 1:
        return f"{found.pop():,} for every architecture"
    return ", ".join(f"{row.label} {counts[row.label]:,}" for row in result.architectures if row.label in counts)


def rates(result: ComparisonResult) -> PlainTable | None:
    """Learning rates with their origin, sizes with their error."""
    rows = []
    for row in result.architectures:
        rate = row.learning_rate
        error = "" if row.size_error is None else f"{100 * row.size_error:+.1f} %"
        source = f"{rate.source}{f' ({rate.note})' if rate.note else ''}" if rate else ""
        value = f"{rate.value:.3g}" if rate else digits.ABSENT
        rows.append([row.label, value, source, f"{row.parameters:,}", error, row.costs.backend, row.config_hash])
    heads = ["architecture", "peak learning rate", "where it comes from", "parameters", "off the target", "operators by", "config"]
    return PlainTable("Learning rates and sizes", heads, rows, words=(2,)) if rows else None


def statistics(result: ComparisonResult) -> list[PlainTable]:
    """Every contrast with its numbers, its per-seed differences, and the per-seed qualities they come from."""
    out = []
    if result.contrasts:
        out.append(_contrasts(result))
        out.append(_deltas(result))
    seeds = sorted({seed for row in result.architectures for seed in row.quality.seeds}, key=_seed_key)
    if seeds:
        rows = [
            [row.label, *(f"{row.quality.seeds[s]:.4f}" if s in row.quality.seeds else digits.ABSENT for s in seeds), _number(row.quality.deviation)]
            for row in result.ranked()
        ]
        out.append(PlainTable("Bits per byte by seed", ["architecture", *(f"seed {s}" for s in seeds), "deviation"], rows))
    return out


def _seed_key(seed: str) -> tuple[int, str]:
    return (int(seed), "") if seed.lstrip("-").isdigit() else (0, seed)


def _number(value: float | None, places: int = 4) -> str:
    return digits.ABSENT if value is None else f"{value:.{places}f}"


def _contrasts(result: ComparisonResult) -> PlainTable:
    heads = ["first \u2212 second", "difference", "interval", "over documents", "seeds", "needed", "p", "adjusted p", "verdict", "in words"]
    rows = []
    for one in result.contrasts:
        span = _span(one.low, one.high)
        documents = _span(one.documents_low, one.documents_high)
        if one.documents and documents != digits.ABSENT:
            documents += f", {one.documents} documents"
        mean = digits.ABSENT if one.mean is None else digits.signed(one.mean, 4, digits.MINUS)
        verdict = one.verdict if one.primary else f"{one.verdict} (secondary)"
        counts = [str(len(one.deltas)), str(one.needed_seeds or digits.ABSENT)]
        name = f"{one.first} \u2212 {one.second}"
        rows.append([name, mean, span, documents, *counts, _number(one.p), _number(one.p_adjusted), verdict, one.sentence])
    if not any(row[-1] for row in rows):
        heads, rows = heads[:-1], [row[:-1] for row in rows]
    return PlainTable("Contrasts", heads, rows, words=(8, 9))


def _span(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return digits.ABSENT
    return f"{digits.signed(low, 3, digits.MINUS)} to {digits.signed(high, 3, digits.MINUS)}"


def _deltas(result: ComparisonResult) -> PlainTable:
    seeds = sorted({seed for one in result.contrasts for seed in one.seeds})
    rows = []
    for one in result.contrasts:
        by_seed = dict(zip(one.seeds, one.deltas))
        cells = [digits.signed(by_seed[s], 4, digits.MINUS) if s in by_seed else digits.ABSENT for s in seeds]
        rows.append([f"{one.first} \u2212 {one.second}", *cells])
    if result.noise_floor is not None and result.noise_floor.deltas:
        floor = result.noise_floor
        cells = [digits.signed(v, 4, digits.MINUS) for v in floor.deltas[: len(seeds)]]
        rows.append([f"{floor.architecture} \u2212 itself", *cells, *[digits.ABSENT] * (len(seeds) - len(cells))])
    return PlainTable("Differences by seed", ["first \u2212 second", *(f"seed {s}" for s in seeds)], rows)


class Recorded(Protocol):
    """Any result that keeps its machine and versions."""

    environment: dict[str, Any]


def environment(result: Recorded) -> Pairs:
    """Machine and versions, nested records in one line each."""
    names = {"cpu": "processor", "cores_allowed": "cores in use", "memory_bytes": "memory", "matmul_gflops": "matrix products"}
    first = ("cpu", "cores", "cores_allowed", "threads", "memory_bytes", "gpu", "matmul_gflops", "python", "packages")
    out: Pairs = []
    for key in sorted(result.environment, key=lambda k: (first.index(k) if k in first else len(first), k)):
        value = result.environment[key]
        if value is None or value == {}:
            continue
        shown = flat(value)
        if key == "memory_bytes" and isinstance(value, (int, float)):
            shown = digits.with_prefix(value, "B")
        elif "gflop" in key.lower() and isinstance(value, (int, float)):
            shown = f"{value:.1f} GFLOP/s"
        out.append((names.get(key, key.replace("_", " ")), shown))
    return out


def runs(result: ComparisonResult) -> PlainTable:
    """Every run, failed ones included, with the folder that holds its truth."""
    heads = ["architecture", "seed", "status", "bits per byte", "steps", "tokens", "time", "folder", "config", "remark"]
    rows = []
    for run in result.runs:
        remark = [] if run.role == "comparison" else [run.role]
        remark += ["found finished"] if run.resumed else []
        remark += [run.error] if run.error else []
        time = digits.ABSENT if run.seconds is None else digits.seconds(run.seconds)
        state = STATUS.get(run.status, run.status)
        rows.append([run.architecture, str(run.seed), state, _number(run.bits_per_byte), f"{run.steps:,}", f"{run.tokens:,}", time,
                     run.folder, run.config_hash, "; ".join(remark)])  # fmt: skip
    return PlainTable("Runs", heads, rows, words=(7, 9))


def excluded(result: ComparisonResult) -> list[dict[str, str]]:
    """Architectures that a limit or a failure rules out."""
    advice = result.recommendation
    return [{"architecture": one.architecture, "why": one.why} for one in advice.excluded] if advice else []


def advice(result: ComparisonResult) -> dict[str, Any] | None:
    """The recommendation with its reason and its doubt as whole sentences."""
    found = result.recommendation
    if found is None:
        return None
    return {
        "choice": found.choice,
        "sentence": found.sentence or words.headline(result),
        "reason": sentence(found.reason),
        "doubt": sentence(found.doubt),
        "tied": ", ".join(found.tied),
        "limits": ", ".join(f"{key.replace('_', ' ')} {flat(value)}" for key, value in sorted(found.limits.items())),
        "excluded": excluded(result),
        "next_command": found.next_command,
    }


def sentence(text: str) -> str:
    """First letter large, a full stop at the end; an empty text stays empty."""
    text = text.strip()
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def lead(result: ComparisonResult) -> dict[str, str]:
    """The headline, parted where the recommendation's own parts make it up."""
    whole = words.headline(result)
    found = result.recommendation
    if found is not None and found.choice and whole == f"Take {found.choice}: {found.reason}; but {found.doubt}.":
        return {"take": f"Take {found.choice}:", "reason": f"{found.reason};", "doubt": f"but {found.doubt}.", "sentence": whole}
    return {"take": "", "sentence": whole}


def numbers_of(panel: Any, labels: Sequence[str]) -> PlainTable | None:
    """The values of a panel for those who do not see it: up to eight places, or the last value where grids differ."""
    lines = [line for line in panel.lines if line.points and not line.faint]
    grids = {tuple(x for x, _ in line.points) for line in lines}
    if not lines:
        return None
    if len(grids) == 1 or panel.x_ticks:
        xs = sorted({x for grid in grids for x in grid})
        step = -(-len(xs) // 8)
        chosen = xs[::-1][::step][::-1]
        rows = []
        for line in lines:
            at = dict(line.points)
            rows.append([line.label, *(panel.write(at[x]) if x in at else digits.ABSENT for x in chosen)])
        return PlainTable(panel.title, [panel.y_title, *(panel.x_text(x) for x in chosen)], rows)
    rows = [[line.label, panel.x_text(line.points[-1][0]), panel.write(line.points[-1][1])] for line in lines]
    return PlainTable(panel.title, ["architecture", panel.x_title, panel.y_title], rows)
