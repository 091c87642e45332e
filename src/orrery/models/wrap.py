"""`orrery.wrap(module)`: any `nn.Module` that maps token ids to logits takes part in everything.

    orrery.compare([orrery.wrap(my_model, name="mine"), "transformer"])

The module is called as `module(tokens (B,T) int64)` and returns logits (B,T,V), or an object or tuple that holds them
(`.logits`, first element). It must be causal; the contract checks tell. It is given no state: continuing a sequence
reads the whole prefix again, which is correct and slow. Documents that meet inside one window are not separated for it
(the module has no argument that could say so); padding is cut off by the loss.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from orrery.core.errors import ConfigError, StateError
from orrery.models.output import Output
from orrery.nn.contract import Context
from orrery.nn.state import state


@state
class WrappedState(NamedTuple):
    """All tokens so far (B,S), and the clock (B,2)."""

    tokens: Tensor
    clock: Tensor


class Wrapped(nn.Module):
    """A stranger's module behind the frame's interface; `hidden` are its logits."""

    def __init__(self, module: nn.Module, vocab_size: int, name: str) -> None:
        super().__init__()
        self.module, self.vocab_size, self.name = module, vocab_size, name

    def forward(
        self, tokens: Tensor, state: WrappedState | None = None, ctx: Context | None = None, segments: Tensor | None = None
    ) -> Output:
        """Tokens (B,T) -> Output whose logits are the module's (B,T,V)."""
        if state is not None and not isinstance(state, WrappedState):
            raise StateError(f"'{self.name}' was given a state of another architecture")
        length = tokens.shape[1]
        everything = tokens if state is None else torch.cat([state.tokens, tokens], 1)
        logits = _logits(self.module(everything))[:, -length:]
        if logits.shape != (*tokens.shape, self.vocab_size):
            wanted = (*tokens.shape, self.vocab_size)
            raise ConfigError(f"'{self.name}' returned logits of shape {tuple(logits.shape)}; expected {wanted}")
        clock = torch.zeros(len(tokens), 2, dtype=torch.int64, device=tokens.device)
        clock[:, 1] = everything.shape[1]
        return Output(logits, WrappedState(everything, clock), None, lambda hidden: hidden)

    def num_parameters(self, embedding: bool = False) -> int:
        """All parameters; without `embedding`, those of `nn.Embedding`s and of a linear map onto the vocabulary are left out."""
        total = {id(p): p.numel() for p in self.parameters()}
        if not embedding:
            for module in self.modules():
                outside = isinstance(module, nn.Embedding) or (isinstance(module, nn.Linear) and module.out_features == self.vocab_size)
                for p in module.parameters(recurse=False) if outside else ():
                    total.pop(id(p), None)
        return sum(total.values())

    def state_bytes(self, length: int) -> int:
        """Eight bytes a token: the prefix is what is kept."""
        return 8 * length

    def flops(self, length: int) -> int:
        """Counted by running the module once on `length` tokens."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.module(torch.zeros(1, length, dtype=torch.int64))
        return int(counter.get_total_flops())


def wrap(module: nn.Module, vocab_size: int | None = None, name: str | None = None) -> Wrapped:
    """Let a module of yours take part. `vocab_size` is found by a trial run when it is not given.

    Raises:
        ConfigError: when the module does not map (B,T) token ids to (B,T,V) logits.
    """
    if isinstance(module, Wrapped):
        return module
    if not isinstance(module, nn.Module):
        raise ConfigError(f"wrap takes an nn.Module, not {type(module).__name__}")
    name = name or type(module).__name__
    if vocab_size is None:
        with torch.no_grad():
            trial = _logits(module(torch.zeros(1, 2, dtype=torch.int64)))
        if trial.dim() != 3 or trial.shape[:2] != (1, 2):
            raise ConfigError(f"'{name}' must map tokens (B,T) to logits (B,T,V); tokens (1,2) gave {tuple(trial.shape)}")
        vocab_size = int(trial.shape[-1])
    return Wrapped(module, vocab_size, name)


def _logits(result: Any) -> Tensor:
    logits = getattr(result, "logits", result[0] if isinstance(result, (tuple, list)) else result)
    if not isinstance(logits, Tensor):
        raise ConfigError(f"a wrapped module must return logits, not {type(result).__name__}")
    return logits
