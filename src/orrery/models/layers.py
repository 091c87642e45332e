"""What the layers of a frame give one by one, and what the attention of some is made of: what distillation compares.

Hidden states: what the embedding and every layer give, the last behind the final norm. Queries, keys and values: of a layer's
attention, before heads are normed and rotated, so that they are functions of the hidden states alone. Scored: queries and keys
as its scores are made of them. They are made beside the fused attention, which never holds its probabilities.

B batch, T time, D width.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from orrery.core.errors import ConfigError
from orrery.models.decoder import DecoderLM
from orrery.models.encoder import Encoder
from orrery.models.output import Output
from orrery.nn.contract import Aux, Context
from orrery.nn.packing import pack
from orrery.nn.timeline import gather_time, plan, spread_time
from orrery.ops.losses.relations import Scored

Heads = tuple[Tensor, Tensor, Tensor]


class Layers(NamedTuple):
    """out: what the model's own call gives. hidden: depth + 1 tensors (B,T,D). heads: q, k, v (B,T,any), or None. scored: by layer."""

    out: Output
    hidden: list[Tensor]
    heads: Heads | None
    scored: dict[int, Scored]


def depth_of(model: nn.Module) -> int:
    """How many layers a frame has.

    Raises:
        ConfigError: for a model whose layers cannot be run one by one.
    """
    if not isinstance(model, Encoder | DecoderLM):
        raise ConfigError(f"the layers of {type(model).__name__} cannot be looked at one by one; compare logits only")
    return len(model.blocks)


def attending(model: nn.Module) -> int:
    """The number of a frame's last layer that has queries, keys and values.

    Raises:
        ConfigError: there is none.
    """
    for layer in reversed(range(depth_of(model))):
        if hasattr(cast(Any, model).blocks[layer].mixer, "queries_keys_values"):
            return layer
    name = cast(Any, model).config.architecture
    raise ConfigError(f"no layer of '{name}' has queries, keys and values whose relations could be compared; leave attention=0")


def heads_of(model: nn.Module, layer: int) -> tuple[int, int | None]:
    """Heads and window of a layer's attention.

    Raises:
        ConfigError: it has none whose scores could be compared.
    """
    mixer = cast(Any, model).blocks[layer].mixer
    if not hasattr(mixer, "scored"):
        name = cast(Any, model).config.architecture
        raise ConfigError(f"layer {layer + 1} of '{name}' has no attention matrix of its own; relations of q, k, v may serve")
    return int(mixer.heads), mixer.config.window


def read_layers(
    model: nn.Module, tokens: Tensor, segments: Tensor | None = None, types: Tensor | None = None, aux: Aux | None = None,
    heads: int | None = None, scored: Collection[int] = (),
) -> Layers:
    """A model's call, layer by layer.

    Args:
        model: an encoder or a decoder language model.
        tokens, segments, types: as the model takes them. aux: what parts add to the loss goes there.
        heads: the number of a layer whose queries, keys and values are wanted. scored: numbers of layers whose scores are.

    Raises:
        ConfigError: for another kind of model.
    """
    depth_of(model)
    frame = cast(Any, model)
    batch, length = tokens.shape
    marks = torch.zeros_like(tokens) if segments is None else segments
    order = None
    if isinstance(model, Encoder) and model.packs:
        packing, time = pack(marks)
        gather, spread = packing.gather, packing.spread
    else:
        time, order = plan(marks, None, batch, length, tokens.device)
        gather = (lambda x: x) if order is None else (lambda x: gather_time(x, order))
        spread = (lambda x: x) if order is None else (lambda x: spread_time(x, order))
    ids = gather(tokens)
    ctx = Context(segments=gather(marks), tokens=ids, time=time, shared={}, aux=aux)
    if isinstance(model, Encoder):
        h = model._embed(ids, None, None if types is None else gather(types), ctx)
    else:
        h = frame._embed(ids, None, ctx)
    valid = time.valid(length)
    found, asked = [h], None
    compared: dict[int, Scored] = {}
    for layer in range(len(frame.blocks)):
        if layer == heads:
            asked = frame.blocks[layer].mixer.queries_keys_values(_entry(frame.blocks[layer], h, ctx), ctx)
        if layer in scored:
            own: Scored = frame.blocks[layer].mixer.scored(_entry(frame.blocks[layer], h, ctx), ctx)
            compared[layer] = own._replace(q=spread(own.q), k=spread(own.k))
        h, _ = frame.run(h, layer, layer + 1, None, ctx)
        found.append(h)
    if frame.norm is not None:
        found[-1] = frame.norm(found[-1])
    hidden = [spread(each if valid is None else each.masked_fill(~valid[..., None], 0.0)) for each in found]
    out = Output(hidden[-1], None, aux, frame._head(segments) if isinstance(model, Encoder) else frame.head)
    return Layers(out, hidden, None if asked is None else cast(Heads, tuple(spread(each) for each in asked)), compared)


def _entry(block: Any, h: Tensor, ctx: Context) -> Tensor:
    """What a block hands to its mixer."""
    if block.guide is not None:
        h = h + block.guide(h, None, ctx)[0]
    x = h if block.config.placement in ("post", "output") else block.mixer_norm(h)
    return cast(Tensor, x if block.canon_a is None else block.canon_a(x, None, ctx)[0])
