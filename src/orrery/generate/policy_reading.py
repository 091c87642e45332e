"""Writing with a policy: the state is changed after every window of tokens, of the prompt and of what follows alike.

As in :mod:`orrery.evaluate.carried` the windows are counted from the first token, so a text that is read and a text that is
written meet the policy at the same places. Inside a window tokens come in any pieces: the prompt's at once, then one at
a time; what a window multiplies a state by is the product over its pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from orrery.core.errors import ConfigError
from orrery.generate.policy import StatePolicy
from orrery.nn.contract import Aux, Context


def policy_reader(model: nn.Module, policy: StatePolicy, window: int) -> Callable[[Tensor, Tensor | None], Tensor]:
    """A function from all tokens (B,S) so far to the scores (B,V) after them; what it has read before is not read again.

    Raises:
        ConfigError: for a window below 1, rows of different lengths, or (when reading) a model that reports no linear state.
    """
    if window < 1:
        raise ConfigError(f"a policy's window must hold at least one token, not {window}")
    policy.begin()
    state: Any = None
    done = 0
    pieces: list[Aux] = []

    def read(tokens: Tensor, segments: Tensor | None) -> Tensor:
        nonlocal state, done
        if segments is not None:
            raise ConfigError(
                "a policy acts at the same token of every row; give prompts of one length, or one at a time"
            )
        scores = None
        with torch.inference_mode():
            while done < tokens.shape[1]:
                stop = min(tokens.shape[1], (done // window + 1) * window)
                pieces.append(Aux(*policy.wanted))
                out = model(tokens[:, done:stop], state=state, ctx=Context(aux=pieces[-1]))
                state, done = out.state, stop
                if done % window == 0:
                    state = policy(state, _joined(pieces), window)
                    pieces.clear()
                scores = out.hidden[:, -1]
            if scores is None:
                raise ConfigError("there is nothing new to read")
            head = getattr(model, "head", None)
            return scores if head is None else head(scores)

    return read


def _joined(pieces: list[Aux]) -> Aux:
    """The report of a window from those of its pieces: logarithms of decays, one after the other."""
    if len(pieces) == 1:
        return pieces[0]
    whole = Aux(*pieces[0].wanted)
    for layer, fields in pieces[0].reports.get("decay_log", {}).items():
        parts = [piece.reports["decay_log"][layer] for piece in pieces]
        whole.put("decay_log", layer, {name: torch.cat([part[name] for part in parts], 1) for name in fields})
    return whole
