"""The sentences of a report. What was measured is said plainly, with its interval, margin and doubt."""

from __future__ import annotations

from orrery.compare.report import digits
from orrery.compare.report.columns import STATUS
from orrery.compare.result import ComparisonResult, Contrast, RunRow
from orrery.core.progress import counted

CAVEAT = "early in training: ranks data efficiency, not final quality"
LONG_RUN = 20.0  # training tokens per parameter from which a run is no longer called early (arXiv 2203.15556)


def headline(result: ComparisonResult) -> str:
    """The whole comparison in one sentence."""
    if result.recommendation is not None and result.recommendation.sentence:
        return result.recommendation.sentence
    ranked = [row for row in result.architectures if row.quality.mean is not None]
    if not ranked:
        return "No architecture finished a run, so there is nothing to compare yet."
    best = result.ranked()[0]
    mean = best.quality.mean or 0.0
    if len(ranked) == 1:
        return f"Only {best.label} finished: {mean:.3f} bits per byte, with nothing to compare it to."
    return f"{best.label} is ahead with {mean:.3f} bits per byte, but no recommendation was drawn from this comparison."


def caveat(result: ComparisonResult) -> str:
    """How early in training this is; the protocol's own words where it has some."""
    return result.protocol.caveat or CAVEAT


def setting(result: ComparisonResult) -> list[str]:
    """The protocol in a few short facts: corpus, size, budget, seeds, time."""
    p = result.protocol
    facts = [p.corpus]
    target = p.target_parameters
    facts.append(f"{p.size}, {digits.count(target)} parameters" if target else p.size)
    tokens = sorted(set(p.tokens.values()))
    if len(tokens) == 1:
        facts.append(f"{digits.count(tokens[0])} tokens per run")
    elif tokens:
        facts.append(f"{p.budget} per run ({digits.count(tokens[0])} to {digits.count(tokens[-1])} tokens)")
    elif p.budget:
        facts.append(f"{p.budget} per run")
    if p.seeds:
        facts.append(counted(len(p.seeds), "seed"))
    if result.seconds:
        facts.append(f"{digits.seconds(result.seconds)} in all")
    return facts


def protocol_line(result: ComparisonResult) -> str:
    """Protocol and caveat in one line."""
    return f"{', '.join(setting(result))}; {caveat(result)}"


def failures(result: ComparisonResult) -> list[str]:
    """One sentence per architecture whose runs, costs or tasks did not all come through."""
    out = []
    for row in result.architectures:
        broken = [run for run in result.runs if run.architecture == row.label and run.status not in ("done", "pending", "running")]
        if broken:
            out.append(_broken(row.label, broken, len([run for run in result.runs if run.architecture == row.label])))
        elif row.status not in ("done", "pending", "running"):
            out.append(f"{row.label}: {STATUS.get(row.status, row.status)}{_because(row.error)}")
        if row.costs.error:
            out.append(f"{row.label}: its costs are incomplete{_because(row.costs.error)}")
    for task in result.capabilities:
        for one in task.rows:
            if one.status in ("failed", "oom", "interrupted"):
                out.append(f"{one.architecture} on {task.name}: {STATUS[one.status]}{_because(one.error)}")
    return out


def _broken(label: str, broken: list[RunRow], asked: int) -> str:
    words = sorted({STATUS.get(run.status, run.status) for run in broken})
    error = next((run.error for run in broken if run.error), "")
    which = "every run" if len(broken) == asked else "seed" + ("s " if len(broken) > 1 else " ") + ", ".join(str(r.seed) for r in broken)
    return f"{label}, {which}: {' or '.join(words)}{_because(error)}"


def _because(error: str) -> str:
    text = " ".join(error.split())
    if not text:
        return "."
    return f": {text}" if text.endswith((".", "!", "?")) else f": {text}."


def difference(contrast: Contrast, minus: str = "-") -> str:
    """`-0.512 [-0.620, -0.404]`; a dash when nothing could be paired."""
    if contrast.mean is None:
        return digits.ABSENT
    mean = digits.signed(contrast.mean, minus=minus)
    if contrast.low is None or contrast.high is None:
        return mean
    return f"{mean} [{digits.signed(contrast.low, minus=minus)}, {digits.signed(contrast.high, minus=minus)}]"


def verdict_rule(result: ComparisonResult) -> str:
    """How verdicts are reached here, in two sentences."""
    p = result.protocol
    needed = p.needed_seeds or max((c.needed_seeds for c in result.contrasts), default=0)
    family = p.family_size or len(result.contrasts)
    text = (
        f"A difference counts as better or worse when its whole {100 * (1 - p.alpha):.0f} % interval lies beyond the margin of "
        f"{p.margin:g} bits per byte and the exact sign-flip test over the family of "
        f"{counted(family, 'primary contrast')} agrees"
    )
    if needed:
        text += f", which takes at least {needed} seeds"
    return text + ". When the whole interval lies inside the margin, no difference is shown; both are results."


def noise(result: ComparisonResult) -> str:
    """What a difference of nothing looks like here; empty when it was not measured."""
    floor = result.noise_floor
    if floor is None:
        return ""
    if floor.sentence:
        return floor.sentence
    if floor.largest is None:
        return ""
    return (
        f"{floor.architecture} against itself under other seeds differed by up to {floor.largest:.3f} bits per byte: "
        "what a difference of nothing looks like here."
    )


def can_tell(result: ComparisonResult) -> list[str]:
    """What a run of this kind is good for."""
    p = result.protocol
    out = ["Which architecture learns most from the same text in the same order at the same size, this early in training."]
    if p.budget_kind == "time":
        out = ["Which architecture learns most in the same time on this machine at the same size; tokens then differ."]
    elif p.budget_kind == "flops":
        out = ["Which architecture learns most from the same number of operations at the same size; tokens then differ."]
    if any(row.costs.train_speed or row.costs.decode or row.costs.state for row in result.architectures):
        out.append("What each costs on this machine: speed, memory and state, timed alone, warm-up apart.")
    if result.capabilities:
        out.append("Whether each can do a small task at all, between chance and the optimum.")
    if len(p.seeds) > 1:
        out.append(f"How far the outcome depends on chance: {len(p.seeds)} seeds, paired between architectures.")
    return out


def cannot_tell(result: ComparisonResult) -> list[str]:
    """What nobody should conclude from it."""
    p = result.protocol
    tokens = max(p.tokens.values(), default=0)
    out = []
    if p.target_parameters and tokens and tokens < LONG_RUN * p.target_parameters:
        ratio = tokens / p.target_parameters
        per = "less than one token" if ratio < 1 else "about one token" if ratio < 1.5 else f"{ratio:.0f} tokens"
        out.append(
            f"The final quality of any of them: a run saw {per} per parameter, compute-optimal ones see about twenty; "
            "curves may still cross."
        )
    else:
        out.append("Quality at other budgets: curves may still cross.")
    target = f" ({digits.count(p.target_parameters)} parameters)" if p.target_parameters else ""
    out.append(f"How they rank at other sizes than {p.size}{target} or on other text than {p.corpus}.")
    if len(p.seeds) < 2:
        out.append("How far the outcome depends on chance: there is one seed, so no interval and no verdict.")
    else:
        needed = p.needed_seeds or max((c.needed_seeds for c in result.contrasts), default=0)
        if needed > len(p.seeds):
            out.append(f"A firm verdict: {len(p.seeds)} seeds can show a direction, {needed} are needed before the rule may decide.")
    out.append("Speed on other machines: these costs belong to this processor, these threads and these versions.")
    return out


def orientation(result: ComparisonResult) -> list[str]:
    """The lines for orientation: counting models on the same text."""
    out = []
    for floor in result.floors:
        if floor.bits_per_byte is not None:
            out.append(f"{floor.label}: {floor.bits_per_byte:.3f} bits per byte{f' ({floor.detail})' if floor.detail else ''}.")
    return out
