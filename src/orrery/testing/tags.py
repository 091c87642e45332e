"""Which tag disables which check, and why. The only such place; `benchmarks/PARITY.md` counts what it switches off."""

from __future__ import annotations

from collections.abc import Collection

KNOWN_TAGS = {
    "causal": "y_t depends on x_1 .. x_t only",
    "bidirectional": "y_t may depend on the whole sequence; no state is carried",
    "recurrent": "the state has a constant size",
    "cache": "the state grows with the tokens seen",
    "parallel": "a form exists that is parallel over time",
    "sequential": "the recurrence must be computed token by token",
    "positions": "uses positions",
    "stochastic": "draws random numbers in its forward pass",
    "zero-start": "the way out starts at zero, so that a block begins as the identity",
    "frozen": "some parameters are drawn once and not trained",
    "counted": "its tables are counted by `fit`, not trained by gradients",
    "data-order": "the result depends on what else is in the batch",
    "tokens": "reads token ids beside its input",
    "rectified": "has kinks (rectified features, maxima); of bfloat16 only the outputs are compared",
    "surrogate": "has thresholds, whose gradients are surrogates",
    "labels": "learns from examples with labels or answers, one text a row",
    "discriminator": "trains an encoder whose head finds replaced tokens",
    "stopped": "holds parts of its value constant when it is differentiated",
    "memory": "reads a memory beside its input (cross-attention)",
    "bytes": "reads UTF-8 bytes, which it makes words of itself",
    "composed": "is made of other objectives",
    "teacher": "learns from another, frozen model",
    "encoder": "builds an encoder",
    "encoder-decoder": "builds an encoder and a decoder that reads it",
}

_NO_STATE = "carries no state"
_RANDOM = "draws differ where shapes differ"

DISABLED: dict[str, dict[str, str]] = {
    "bidirectional": {
        "carry": _NO_STATE,
        "split": _NO_STATE,
        "steps": _NO_STATE,
        "state_twice": _NO_STATE,
        "state_select": _NO_STATE,
        "donated": _NO_STATE,
        "update": _NO_STATE,
        "lengths": "a longer sequence changes every output",
        "causality": "sees the future by design",
        "nan_future": "sees the future by design",
    },
    "parallel": {
        "nan_future": "a product with a masked zero carries NaN; `causality` shows the same by gradient and by value"
    },
    "stochastic": {
        "accumulation": _RANDOM,
        "split": _RANDOM,
        "steps": _RANDOM,
        "lengths": _RANDOM,
        "padding": _RANDOM,
        "packing": _RANDOM,
        "batch": _RANDOM,
        "state_select": _RANDOM,
        "donated": _RANDOM,
        "update": _RANDOM,
        "compile": _RANDOM,
        "oracle": _RANDOM,
    },
    "surrogate": {
        "gradients": "a surrogate is not the derivative of a step; its own tests compare it with its reference's"
    },
    "labels": {"one_document": "a row is one text by definition", "carry": _NO_STATE},
    "stopped": {
        "gradients": "its gradient is not that of its value by design; its own tests compare it with an oracle's"
    },
    "frozen": {"every_parameter": "some parameters are not trained by design"},
    "data-order": {"batch": "the batch is part of the function by design"},
    "memory": {
        "state_bytes": "its state grows with the memory, not with the tokens; the encoder-decoders' `costs` compares it",
        "flops": "the formula is for as much memory as tokens; the encoder-decoders' `costs` compares it",
    },
}


_NO_BLOCKS = "has no blocks"
_NO_GRADIENT = "is counted, not trained by gradients"

MODELS_DISABLED: dict[str, dict[str, str]] = {
    "stochastic": DISABLED["stochastic"],
    "whole": {
        "parts": _NO_BLOCKS,
        "ladder": "has a size of its own",
        "canon": _NO_BLOCKS,
        "costs": "counts by its own formula",
    },
    "instance": {
        "interface": "its errors are its own",
        "documents": "a wrapped module cannot be told of documents",
        "seeds": "is built already",
        "saved": "a wrapped module has no config to be rebuilt from",
        "every_parameter": "its parameters are its own affair",
        "parts": _NO_BLOCKS,
        "ladder": "has a size of its own",
        "canon": _NO_BLOCKS,
        "costs": "counted by running it",
    },
    "built": {
        "seeds": "is built already",
        "ladder": "has a size of its own",
        "canon": "is built already",
    },
    "bytes": {
        "padding": "has no embedding that could stand for tokens; its own tests pad it",
        "heads": "has no vocabulary to fill in and pools itself; its own tests try its heads",
    },
    "counted": {
        "every_parameter": _NO_GRADIENT,
        "learns": _NO_GRADIENT,
        "seeds": "draws nothing",
    },
}


def disabled(check: str, tags: Collection[str], kind: str = "mixer") -> str:
    """Why `check` does not apply to something of a kind (mixer, model) with these tags; empty when it applies."""
    table = MODELS_DISABLED if kind == "model" else DISABLED
    for tag in sorted(tags):
        reason = table.get(tag, {}).get(check)
        if reason:
            return f"'{tag}': {reason}"
    return ""
