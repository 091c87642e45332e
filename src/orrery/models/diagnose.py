"""Where a model breaks: the first part whose output is not a number although what it was given is.

A second pass with hooks, for the moment when something has gone wrong; nothing here costs anything before that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def find_broken(model: nn.Module, call: Callable[[], Any]) -> str | None:
    """Name the place where `call()`, which runs the model, first gives a value that is not finite.

    Returns:
        "the parameter blocks.1.mixer.A_log", or "blocks.1.mixer (Mamba2)", the innermost part; None when everything is
        finite.
    """
    for name, parameter in model.named_parameters():
        if not bool(parameter.detach().isfinite().all()):
            return f"the parameter {_plain(name)}"
    found: list[str] = []
    names = {module: name for name, module in model.named_modules()}

    def look(module: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        if not found and _finite(given[:2]) and not _finite(result):
            found.append(f"{_plain(names[module]) or 'the model'} ({type(module).__name__})")

    handles = [module.register_forward_hook(look) for module in model.modules()]
    try:
        with torch.no_grad():
            call()
    except (RuntimeError, ValueError):  # a broken pass may not reach its end; what was seen until then counts
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _plain(name: str) -> str:
    return name.removeprefix("model.")


def _finite(value: Any) -> bool:
    """Whether all floating-point tensors of a nested value are finite; values of other kinds do not count."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.detach().isfinite().all())
    if isinstance(value, (tuple, list)):
        return all(_finite(item) for item in value)
    hidden = getattr(value, "hidden", None)
    if isinstance(hidden, Tensor):
        return _finite(hidden)
    return True
