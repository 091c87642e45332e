"""Rooms that are named after what they do: `orrery.generate` is a package and, called, its function of that name.

Python binds a package as an attribute of its parent when it is first imported, so `orrery.generate` may be the package
or the function, depending on what was imported before. Making the package callable makes both the same to a user.
"""

from __future__ import annotations

import sys
import types
from typing import Any


class CallableRoom(types.ModuleType):
    """A package that, called, calls its function of its own name."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*arguments, **named)


def make_callable(package: str) -> None:
    """Let `package(...)` mean `package.NAME(...)`, NAME being the package's last part."""
    sys.modules[package].__class__ = CallableRoom
