"""Whether a model can be read window by window with its state carried along, for how long, and at what memory.

Recurrences carry a constant state; attention with a window or a memory carries a cache that stops growing. A cache that
grows with the text is right but unbounded, and learned positions end: neither can be trained on an endless stream.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from orrery.core.errors import ConfigError

_LONG = 1 << 24  # tokens, beyond any window


def model_name(model: nn.Module) -> str:
    """What to call a model in a message."""
    config = getattr(model, "config", None)
    return str(getattr(config, "architecture", None) or getattr(model, "name", None) or type(model).__name__)


def check_carries(model: Any) -> None:
    """Raise unless the model can continue from a state.

    Raises:
        ConfigError: for a wrapped module, a counting model, an encoder.
    """
    if not (hasattr(model, "init_state") and hasattr(model, "state_bytes")):
        raise ConfigError(
            f"'{model_name(model)}' has no state of its own that could be carried from window to window; "
            "choose a recurrent architecture (`orrery list --tag recurrent`) or read windows from an empty state"
        )


def check_streams(model: Any) -> None:
    """Raise unless the model can carry its state along an endless stream in bounded memory.

    Raises:
        ConfigError: when there is no state, when a cache grows with the text, or when positions end.
    """
    check_carries(model)
    name = model_name(model)
    if getattr(getattr(model, "config", None), "positions", "none") == "learned":
        raise ConfigError(f"'{name}' has a table of {model.config.max_positions} learned positions and cannot read an endless stream")
    if model.state_bytes(2 * _LONG) > model.state_bytes(_LONG):
        raise ConfigError(
            f"'{name}' keeps a cache that grows with the text and cannot read an endless stream; give its attention a window "
            "(--set model.window=256) or choose a recurrent architecture"
        )
