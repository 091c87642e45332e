"""Files of the catalogue import one another in one direction only, inside functions and for types as well."""

import ast
from pathlib import Path

from orrery import catalogue

ROOM = Path(catalogue.__file__).parent


def imported(file):
    """Names of the room's files that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "orrery.catalogue":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("orrery.catalogue."):
                found.add(node.module.rpartition(".")[2])
    return found & {each.stem for each in ROOM.glob("*.py")} - {"__init__"}


def test_no_circle():
    arrows = {file.stem: imported(file) for file in ROOM.glob("*.py")}
    assert {"merge", "shipped"} <= arrows["store"] and "filing" in arrows["merge"], "the arrows are read"
    left = {name: set(to) for name, to in arrows.items()}
    while free := [name for name, to in left.items() if not to & set(left)]:
        for name in free:
            del left[name]
    assert not left, f"a circle among {sorted(left)}"
