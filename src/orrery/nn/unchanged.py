"""Whether a model is what it was when something was prepared from it: asked before every text, so all loops are in C.

Seen are modules that are put in, taken out, adapted or parametrised (another type), settings that are given another value (the eps of
a norm, the scale of a head, an activation) and whoever listens: hooks on any module or on all, and a `forward` of an instance. What
stands in parameters and buffers is the caller's to compare, and so are values behind a leading underscore.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from itertools import repeat
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

_OWN = frozenset(vars(nn.Module()))
_HOOKS, _BACK = ("forward_hooks", "forward_pre_hooks"), ("backward_hooks", "backward_pre_hooks")


def all_modules(model: nn.Module) -> list[nn.Module]:
    """Every module of a model once; the order is always the same. Quicker than `model.modules()`, which also makes their names."""
    found, waiting = dict[nn.Module, None](), [model]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            waiting.extend(each for each in module._modules.values() if each is not None)
    return list(found)


def listened_to(modules: Iterable[nn.Module], back: bool = False) -> bool:
    """Whether a hook waits for a call of one of these (back: or for its gradient), or an instance has a `forward` of its own."""
    return _listened_to([vars(each) for each in modules], back)


def _listened_to(kept: list[dict[str, Any]], back: bool = False) -> bool:
    for name in _HOOKS + _BACK if back else _HOOKS:
        if getattr(torch_module, f"_global_{name}", None) or any(map(operator.getitem, kept, repeat(f"_{name}"))):
            return True
    return any(map(operator.contains, kept, repeat("forward")))


class Unchanged:
    """`Unchanged(model)()`: whether the model is still made of the same modules with the same settings. It does not keep the model."""

    def __init__(self, model: nn.Module) -> None:
        modules = all_modules(model)
        self.kept, self.modules = [vars(each) for each in modules], modules[1:]
        self.types = list(map(type, self.modules))
        self._children = _Entries([each._modules for each in modules])
        self._settings = _Entries(self.kept, lambda name: not name.startswith("_") and name not in _OWN)
        lists = (value for value in self._settings.values if isinstance(value, list))
        self._lists = [(value, list(value)) for value in lists]

    def __call__(self) -> bool:
        """Hooks are another question: :meth:`listened_to`."""
        same = list(map(type, self.modules)) == self.types and self._children.same() and self._settings.same()
        return same and all(held == kept for held, kept in self._lists)

    def listened_to(self) -> bool:
        """As the function of this name, for all modules."""
        return _listened_to(self.kept)


class _Entries:
    """What stands under some names of dictionaries, compared by identity."""

    def __init__(self, homes: list[dict[str, Any]], wanted: Any = lambda name: True) -> None:
        self.homes, self.sizes = homes, list(map(len, homes))
        found = [(home, name, value) for home in homes for name, value in home.items() if wanted(name)]
        self.places, self.names, self.values = ([each[n] for each in found] for n in range(3))

    def same(self) -> bool:
        try:
            return list(map(len, self.homes)) == self.sizes and all(map(operator.is_, map(operator.getitem, self.places, self.names), self.values))
        except KeyError:
            return False
