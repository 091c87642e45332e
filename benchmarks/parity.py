"""Write benchmarks/PARITY.md: every mixer against its independent oracle, and which contract checks it passes.

    python benchmarks/parity.py [NAME ...]

An oracle is a float64 loop in numpy, written from the paper's equations (tests/oracles/), which knows neither torch nor
orrery. Parameters are random, not initial ones. Two rows of 23 tokens are run as one document and as three. The forward
error is the largest difference divided by the largest output; the gradient error compares autograd with central
differences of the oracle along one random direction for the input and for each parameter, relative to the gradient's
size (differences of a float64 function are themselves only good to about 1e-8).
"""

from __future__ import annotations

import datetime
import importlib
import platform
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "src"), str(HERE.parent / "tests")]

from orrery.core import registry  # noqa: E402
from orrery.core.environment import cpu_name  # noqa: E402
from orrery.testing import DISABLED, TOLERANCES, checks_for  # noqa: E402
from orrery.testing.mixer_numbers import oracle_errors  # noqa: E402
from orrery.testing.subject import Oracle, subjects  # noqa: E402
from orrery.testing.tags import MODELS_DISABLED  # noqa: E402
from orrery.testing.tolerance import DIFFERENCE, FLOPS, ORACLE  # noqa: E402


def oracle_of(name: str) -> Oracle | None:
    plain = name.replace("-", "_")
    try:
        return getattr(importlib.import_module(f"oracles.{plain}"), plain)
    except ModuleNotFoundError:
        return None


def parity_rows(name: str) -> list[str]:
    """One table row for each variant of a mixer."""
    oracle, rows = oracle_of(name), []
    for subject in subjects(name, oracle=oracle):
        if subject.canon:
            continue
        if oracle is None:
            rows.append(f"| `{subject.label}` | none | | | | |")
            continue
        numbers = []
        for dtype in (torch.float64, torch.float32):
            forward, gradient = oracle_errors(subject, dtype)
            numbers += [f"{forward:.1e}", "surrogate" if "surrogate" in subject.tags else f"{gradient:.1e}"]
        rows.append(f"| `{subject.label}` | tests/oracles/{name.replace('-', '_')}.py | " + " | ".join(numbers) + " |")
    return rows


def check_row(name: str) -> tuple[str, int]:
    """A table row of how many checks ran, failed and do not apply; and the number of failures."""
    failed, disabled, ran = [], {}, 0
    for check in checks_for(name, oracle=oracle_of(name)):
        if check.disabled:
            if not (check.name == "oracle" and "canon=" in check.subject):
                disabled[check.name] = check.disabled
            continue
        ran += 1
        try:
            check()
        except AssertionError as problem:
            failed.append(check.name)
            print(problem, file=sys.stderr)
    reasons = "; ".join(f"{key} ({reason})" for key, reason in disabled.items()) or "none"
    return f"| `{name}` | {ran} | {', '.join(failed) or 0} | {reasons} |", len(failed)


def tables() -> list[str]:
    """The tolerance table and the size of the tag tables."""
    lines = ["| dtype | forward | gradient |", "| --- | --- | --- |"]
    for dtype, row in TOLERANCES.items():
        lines.append(f"| {str(dtype).removeprefix('torch.')} | {row.value:g} | {row.gradient:g} |")
    entries = [(tag, check, why) for tag, checks in DISABLED.items() for check, why in checks.items()]
    lines += [
        "",
        (
            f"Against the oracle {ORACLE:g} (forward) and {DIFFERENCE:g} (gradient, by differences); operations within "
            f"{100 * FLOPS:g} % of what is counted; bytes of state exactly. bfloat16 is judged by the ratio of root mean squares."
        ),
        "",
        (
            f"The tag table of mixers switches off {len(entries)} pairs of a tag and a check "
            f"({sum(map(len, MODELS_DISABLED.values()))} of models):"
        ),
        "",
        "| tag | checks | why |",
        "| --- | --- | --- |",
    ]
    for tag, checks in DISABLED.items():
        for why in dict.fromkeys(checks.values()):
            names = ", ".join(check for check, reason in checks.items() if reason == why)
            lines.append(f"| {tag} | {names} | {why} |")
    return lines


def main() -> int:
    torch.set_num_threads(1)
    today = datetime.datetime.now(datetime.timezone.utc).date()
    names = sys.argv[1:] or registry.names(kind="mixer")
    parity = [row for name in names for row in parity_rows(name)]
    checked = [check_row(name) for name in names]
    text = [
        "# Parity with independent oracles, and the contract",
        "",
        *(__doc__ or "").split("\n\n", 2)[2].strip().splitlines(),
        "",
        (
            f"Made by `python benchmarks/parity.py` on {today}, torch {torch.__version__}, Python "
            f"{platform.python_version()}, {cpu_name()}, one thread, backends chosen by the automatic rule."
        ),
        "",
        "## Errors against the oracle",
        "",
        "| mixer | oracle | forward, float64 | gradient, float64 | forward, float32 | gradient, float32 |",
        "| --- | --- | --- | --- | --- | --- |",
        *parity,
        "",
        "## Contract checks",
        "",
        "| mixer | run | failed | do not apply (why) |",
        "| --- | --- | --- | --- |",
        *(row for row, _ in checked),
        "",
        "## Tolerances",
        "",
        *tables(),
        "",
    ]
    if not sys.argv[1:]:
        (HERE / "PARITY.md").write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))
    return 1 if any(failures for _, failures in checked) else 0


if __name__ == "__main__":
    sys.exit(main())
