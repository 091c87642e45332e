"""What README and docs/ point at is there: files, headings, targets of make, scripts, and commands with their options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> list[str]:
    """Lines of code blocks, without a comment behind; some lines hold two."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(encoding="utf-8").replace("\\\n", " "), re.M | re.S)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [part.strip() for line in lines for part in re.split(r" && |\s{2,}(?=orrery )", line.removeprefix("$ "))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        file, _, anchor = link.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), f"{page.name}: no file {link}"
        assert not anchor or anchor in anchors(there), f"{page.name}: no heading {link}"


def test_targets_and_scripts_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"make ([a-z-]+)", "\n".join([*re.findall(r"`make [a-z-]+", text), *commands(page)])):
            assert target in targets, f"{page.name}: make {target}"
        for script in re.findall(r"\b((?:benchmarks|tests)/\w+\.py)", text):
            assert (ROOT / script).is_file(), f"{page.name}: {script}"


def test_commands_and_their_options_exist() -> None:
    from orrery.cli.app import app

    root, seen = typer.main.get_command(app), 0
    for page in PAGES:
        for line in commands(page):
            if not line.startswith("orrery ") or any(mark in line for mark in "|<[{…"):
                continue
            words, command = shlex.split(re.split(r" [;>&]| \.\.\.", line)[0])[1:], root
            while words and not words[0].startswith("-") and hasattr(command, "commands"):
                assert words[0] in command.commands, f"{page.name}: {line}"
                command = command.commands[words.pop(0)]
            known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)} | {"--help"}
            for word in words:
                if re.match(r"--?[a-z]", word):
                    assert word.split("=")[0] in known, f"{page.name}: {word} in {line}"
            seen += 1
    assert seen >= 20
