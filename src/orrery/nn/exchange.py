"""Exchange maps: how an architecture's config and weights are named in other libraries' checkpoints.

An architecture's file states its maps as data: two small functions translate the config, a list of rules names the
weights. :mod:`orrery.models.exchange` interprets them in both directions.

    Rule("blocks.{i}.mixer.inputs.linear.weight",                              ours; {i} runs over the layers
         ("h.{i}.attn.q.weight", "h.{i}.attn.k.weight", "h.{i}.attn.v.weight"),  theirs, stacked along rows
         ("rotary", "rotary", ""))                                             what happens to each of theirs first

Steps, from theirs to ours (the way back is their inverse):
    ""           as it is
    transpose    swap the two dimensions (GPT-2 stores its linear maps as (in, out))
    rotary       reorder the rows of each head: pairs (j, j + R/2) become neighbours (2j, 2j + 1)
    squeeze      drop the middle dimension of size 1 (depthwise convolutions are (C,1,K))
    flat         drop all dimensions of size 1
    gain         add 1 (Gemma stores what its norms' gains exceed 1 by)
    root         times the root of the width (Gemma's factor on its embedding, which is a part of the embedding here, and of a
                 head that is not tied to it)
    gain-root    as gain, then divided by that root (the final norm takes the factor away from the logits)
    heads        rows that lie head by head, each with its q, k, v, become all of q, all of k, all of v

Layers of one model may differ: a rule that names a `mixer` concerns the layers that have it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from orrery.core.config import require


@dataclass(frozen=True)
class Rule:
    """One tensor of ours from one or several of theirs.

    mixer: registered name; only layers with this mixer are meant. rows: attributes of the layer's mixer that say how many
    rows each of theirs has (empty: equal parts, or those of grouped-query attention).
    """

    ours: str
    theirs: tuple[str, ...]
    steps: tuple[str, ...] = ()
    mixer: str = ""
    rows: tuple[str, ...] = ()

    def step(self, index: int) -> str:
        """What happens to the index-th of theirs."""
        return self.steps[index] if self.steps else ""


@dataclass(frozen=True)
class HeadMap:
    """A class of theirs that has a head on the same body.

    cls: their class. head: our head, {"name": ..., **settings}, or None. rules, ignored: as of :class:`ExchangeMap`, for the
    head alone. labelled: their config names the labels. needs: a tensor without which this is not the head. read: their config
    (dict) -> settings of the head that it decides.
    """

    cls: str
    head: Mapping[str, Any] | None
    rules: tuple[Rule, ...] = ()
    ignored: tuple[str, ...] = ()
    labelled: bool = False
    needs: str = ""
    read: Callable[[dict[str, Any]], dict[str, Any]] | None = None


@dataclass(frozen=True)
class ExchangeMap:
    """Between one architecture here and one `model_type` there.

    model_type, cls: the type in their config.json, and the class name that their loader looks for.
    read: their config (dict) -> arguments of `create_model` (width, depth, vocab_size and dotted settings).
        Raises ConfigError for settings that have no counterpart here.
    write: our resolved config (dict) -> their config. Raises ConfigError for what they cannot express.
    rules: weights; a rule whose `ours` the model does not have (no bias, a tied head) is skipped.
    ignored: endings of their tensors that hold no parameters (masks, frequency tables).
    prefixes: prefixes that their tensors may lack, depending on how they were saved.
    prepare: (their config, their tensors) -> tensors, before the rules; where constant factors go into the weights.
    finish: the way back, (their config, the rules' tensors) -> theirs, where `prepare` took tensors apart.
    heads: their classes with heads; `cls` and `rules` are then the bare body's, or of encoder-decoders those of the one that writes.
    refused: classes of theirs that have no counterpart here, and why.
    """

    model_type: str
    cls: str
    read: Callable[[dict[str, Any]], dict[str, Any]]
    write: Callable[[dict[str, Any]], dict[str, Any]]
    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    prepare: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] | None = None
    finish: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] | None = None
    heads: tuple[HeadMap, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)


def linear_rules(
    ours: str, theirs: str | tuple[str, ...], *steps: str, mixer: str = "", rows: tuple[str, ...] = ()
) -> tuple[Rule, Rule]:
    """Rules for the weight and the bias of a linear map; a transposition does not concern the bias."""
    names = (theirs,) if isinstance(theirs, str) else theirs
    bias_steps = tuple("" if step == "transpose" else step for step in steps)
    return (
        Rule(f"{ours}.weight", tuple(f"{name}.weight" for name in names), steps, mixer, rows),
        Rule(f"{ours}.bias", tuple(f"{name}.bias" for name in names), bias_steps, mixer, rows),
    )


def plain_blocks(own: dict[str, Any], title: str, eps: float | None = None) -> list[dict[str, Any]]:
    """The block of every layer of our config; ConfigError unless all are pre-norm with RMSNorm of one eps (or of `eps`), as the last norm."""
    blocks = [own["blocks"][kind] for kind in own["layout"]]
    alike = all(b["placement"] == "pre" and not b["canon"] and b["norm"] == own["norm"] and b["eps"] == own["eps"] for b in blocks)
    known = own["norm"] == "rmsnorm" and eps in (None, own["eps"])
    only = "one eps" if eps is None else f"eps {eps:.0e}".replace("e-0", "e-")
    require(alike and known, f"{title} has pre-norm blocks with RMSNorm of {only}, without Canon layers")
    return blocks


def _dropout(hf: dict[str, Any]) -> dict[str, Any]:
    return {"dropout": hf.get("classifier_dropout") or 0.0, "dropout_twice": True}


def pair_heads(prefix: str) -> tuple[HeadMap, ...]:
    """Heads on whole encoder-decoders, which T5 and BART name alike, and the body without any; `prefix` of their classes."""
    document = {"name": "classification", "pool": "last", "transform": "tanh", "norm": False}
    rules = (*linear_rules("head.dense", "classification_head.dense"), *linear_rules("head.out", "classification_head.out_proj"))
    return (
        HeadMap(f"{prefix}ForSequenceClassification", document, rules, labelled=True, read=_dropout),
        HeadMap(f"{prefix}ForQuestionAnswering", {"name": "span", "transform": ""}, linear_rules("head.out", "qa_outputs")),
        HeadMap(f"{prefix}Model", None),
    )


def norm_rules(ours: str, theirs: str) -> tuple[Rule, Rule]:
    """Rules for a norm's weight and bias."""
    return linear_rules(ours, theirs)


def attention_rules(ours: str, theirs: str, mixer: str = "") -> tuple[Rule, ...]:
    """Rules for rotary attention whose four maps are named as Llama's."""
    inputs = tuple(f"{theirs}.{part}_proj" for part in "qkv")
    return (
        *linear_rules(f"{ours}.inputs.linear", inputs, "rotary", "rotary", "", mixer=mixer),
        *linear_rules(f"{ours}.out", f"{theirs}.o_proj", mixer=mixer),
    )


def mamba2_rules(ours: str, theirs: str, mixer: str = "") -> tuple[Rule, ...]:
    """Rules for a Mamba-2 layer whose parts are named as the authors'."""
    return (
        *linear_rules(f"{ours}.inputs.linear", f"{theirs}.in_proj", mixer=mixer),
        Rule(f"{ours}.conv.weight", (f"{theirs}.conv1d.weight",), ("squeeze",), mixer=mixer),
        Rule(f"{ours}.conv.bias", (f"{theirs}.conv1d.bias",), mixer=mixer),
        *(Rule(f"{ours}.{name}", (f"{theirs}.{name}",), mixer=mixer) for name in ("dt_bias", "A_log", "D")),
        Rule(f"{ours}.norm", (f"{theirs}.norm.weight",), mixer=mixer),
        *linear_rules(f"{ours}.out", f"{theirs}.out_proj", mixer=mixer),
    )


def hybrid_settings(hf: dict[str, Any], kinds: Collection[str], rope: float | dict[str, Any], theta: float) -> dict[str, Any]:
    """Settings of the Mamba-2 and the attention layers of a hybrid, from the names that Bamba and Granite share.

    Args:
        hf: their config.
        kinds: "mamba", "attention" or both: the layers that there are.
        rope, theta: rotated share of a head or scaling of positions, and base of the angles.
    """
    limit = tuple(float(bound) for bound in hf.get("time_step_limit") or (0.0, math.inf))
    mamba = {
        "mamba2.head_dim": hf["mamba_d_head"],
        "mamba2.expand": hf["mamba_n_heads"] * hf["mamba_d_head"] / hf["hidden_size"],
        "mamba2.state": hf["mamba_d_state"],
        "mamba2.groups": hf["mamba_n_groups"],
        "mamba2.conv": hf["mamba_d_conv"],
        "mamba2.conv_bias": hf.get("mamba_conv_bias", True),
        "mamba2.bias": hf.get("mamba_proj_bias", False),
        "mamba2.eps": hf["rms_norm_eps"],
        "mamba2.dt_limit": None if limit == (0.0, math.inf) else limit,
    }
    attention = {
        "attention.heads": hf["num_attention_heads"],
        "attention.kv_heads": hf.get("num_key_value_heads") or hf["num_attention_heads"],
        "attention.head_dim": hf["hidden_size"] // hf["num_attention_heads"],
        "attention.rope": rope,
        "attention.rope_theta": theta,
        "attention.bias": hf.get("attention_bias", False),
        "attention.dropout": hf.get("attention_dropout", 0.0),
    }
    return {**(mamba if "mamba" in kinds else {}), **(attention if "attention" in kinds else {})}
