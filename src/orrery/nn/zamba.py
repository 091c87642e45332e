"""What Zamba and Zamba2 share: names of layers and tensors where attention blocks are shared between layers.

A checkpoint holds a shared block under the name of one of its layers, and in memory under the names of all; the maps of low
rank of all its uses lie in lists inside it, numbered by the model's hybrid layers. Here a layer's own tensors stand under that
layer, and what layers have in common under the first of them. Where head and embedding are not tied, transformers ties the
blocks neither: a folder holds them once for every layer then.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

import torch

from orrery.core.config import require

MOST = 4  # shared blocks by turns
COMMON = ("guide.*norm.weight", "guide.attention.*.weight", "guide.mlp.*.[wb]*")
"""What the layers with one shared block have in common: everything but maps of low rank and the way back."""
ACTIVATIONS = {"gelu": "gelu", "silu": "silu", "gelu_pytorch_tanh": "gelu-tanh", "relu": "relu"}
"""Their names of activations, and ours."""

_KINDS = {  # their names of a layer, with those of older files
    **dict.fromkeys(("linear_attention", "mamba"), "mamba"),
    "hybrid": "hybrid",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.*)")


def kinds_of(hf: dict[str, Any]) -> list[str]:
    """Their layers, each "mamba" or "hybrid"."""
    theirs = hf.get("layers_block_type") or hf.get("layer_types") or []
    require(bool(theirs) and all(kind in _KINDS for kind in theirs), f"the kinds of layers are not known: {theirs}")
    return [_KINDS[kind] for kind in theirs]


def hybrid_names(count: int) -> list[str]:
    """Names here of layers with the first, second .. shared block."""
    require(0 < count <= MOST, f"between 1 and {MOST} shared blocks can be used by turns, not {count}")
    return ["hybrid", *(f"hybrid-{number}" for number in range(2, count + 1))]


def pattern_of(kinds: list[str], blocks: int) -> str:
    """Their layers as a pattern, with `blocks` shared blocks by turns."""
    names, use, found = hybrid_names(blocks), 0, []
    for kind in kinds:
        found.append(names[use % blocks] if kind == "hybrid" else kind)
        use += kind == "hybrid"
    return " + ".join(f"{name}*{len(list(run))}" for name, run in groupby(found))


def shared_blocks(own: dict[str, Any]) -> int:
    """How many shared blocks a resolved config has, which must be used by turns, all of a kind and with everything in common.

    Raises:
        ConfigError: for a model that is none of theirs.
    """
    layout = [kind for kind in own["layout"] if own["blocks"][kind].get("guide")]
    order = list(dict.fromkeys(layout))
    require(bool(order), "at least one layer has shared attention")
    require(layout == [order[use % len(order)] for use in range(len(layout))], "shared blocks are used by turns")
    guided = [own["blocks"][kind] for kind in order]
    require(all(block == guided[0] for block in guided), "all shared blocks are of one kind")
    require(len(layout) == len(order) or list(guided[0]["common"]) == list(COMMON), f"layers have in common what {COMMON} names")
    return len(order)


def own_places(kinds: list[str], blocks: int, tensors: dict[str, Any], home: str) -> dict[str, Any]:
    """Their tensors with every layer's own under that layer; `home` is what a layer's shared block is called.

    Raises:
        ConfigError: for a block that is not the same in all of its layers.
    """
    uses = [layer for layer, kind in enumerate(kinds) if kind == "hybrid"]
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        match = _LAYER.fullmatch(name)
        if match is not None and int(match[1]) in uses:
            layer, rest = int(match[1]), match[2].removeprefix("mamba_decoder.")
            if rest.startswith(f"{home}."):
                use, holder = re.search(r"_adapter_list\.(\d+)\.", rest), layer
                layer = uses[int(use[1]) if use else uses.index(layer) % blocks]
                rest = re.sub(r"_adapter_list\.\d+\.", "_adapter.", rest)
                given = found.get(f"model.layers.{layer}.{rest}", tensor)
                if use is not None and holder != layer:  # of another use; what this one's layer holds counts
                    tensor = given
                require(
                    use is not None or given is tensor or torch.equal(given, tensor),
                    f"{name} differs from the same of layer {layer}: transformers shares blocks only where tie_word_embeddings is true",
                )
            name = f"model.layers.{layer}.{rest}"
        found[name] = tensor
    return found


def their_places(kinds: list[str], blocks: int, tensors: dict[str, Any], home: str, tied: bool) -> dict[str, Any]:
    """The way back from :func:`own_places`; a shared block stands under its first layer, or, not `tied`, under all of them."""
    uses = [layer for layer, kind in enumerate(kinds) if kind == "hybrid"]
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        match = _LAYER.fullmatch(name)
        if match is not None and int(match[1]) in uses:
            layer, rest = int(match[1]), match[2]
            use = uses.index(layer)
            if rest.startswith(f"{home}."):
                rest = rest.replace("_adapter.", f"_adapter_list.{use}.")
                homes = uses[use % blocks :: blocks][: 1 if tied else None]
                found |= {f"model.layers.{each}.{rest}": tensor.clone() if number else tensor for number, each in enumerate(homes)}
                continue
            if rest.startswith(("mamba.", "input_layernorm.")):
                rest = f"mamba_decoder.{rest}"
            name = f"model.layers.{layer}.{rest}"
        found[name] = tensor
    return found
