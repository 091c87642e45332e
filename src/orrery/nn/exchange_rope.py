"""What exchange maps say of rotary positions: the part of a head that turns, the base of its angles, and their scaling.

Theirs stands in `rope_parameters`, in older files in `rope_scaling` and beside it; ours in a mixer's `rope` and `rope_theta`.
"""

from __future__ import annotations

from typing import Any

from orrery.core.config import require
from orrery.nn.rotary import KINDS, Rope, RopeScaling, part_of, scaling_of

_TRAINED = "original_max_position_embeddings"
_NAMES = {  # theirs -> ours
    "factor": "factor",
    _TRAINED: "original",
    "partial_rotary_factor": "part",
    "attention_factor": "attention",
    "beta_slow": "slow",
    "beta_fast": "fast",
    "low_freq_factor": "slow",
    "high_freq_factor": "fast",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all",
    "truncate": "truncate",
    "short_factor": "short",
    "long_factor": "long",
}
_OF = {  # of each kind, what theirs says beside type, base and rotated part
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", _TRAINED, "attention_factor", "beta_slow", "beta_fast", "mscale", "mscale_all_dim", "truncate"),
    "llama3": ("factor", _TRAINED, "low_freq_factor", "high_freq_factor"),
    "longrope": ("factor", _TRAINED, "attention_factor", "short_factor", "long_factor"),
}
_LONGER = 1 << 20


def read_rope(
    hf: dict[str, Any], theta: float = 10000.0, part: float | None = None, layer: str = ""
) -> tuple[float | dict[str, Any], float]:
    """Our `rope` (the rotated part, or the settings of a scaling) and `rope_theta`.

    Args:
        hf: their config.
        theta, part: the base and the rotated part where it names none; part None: their model knows no partial rotation.
        layer: of configs that say it for each type of layer, the type.

    Raises:
        ConfigError: for a scaling that has no counterpart.
    """
    found = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
    found = dict(found.get(layer) or {}) if layer else found
    kind = found.get("rope_type") or found.get("type") or "default"
    base, most = float(found.get("rope_theta") or hf.get("rope_theta") or theta), hf.get("max_position_embeddings")
    stated = (found.get("partial_rotary_factor"), hf.get("partial_rotary_factor"), part, 1.0)
    turned = next(each for each in stated if each is not None)
    if kind == "default":
        return 1.0 if part is None else float(turned), base
    require(part is not None or turned == 1.0, "partial rotation beside a scaling has no counterpart")
    require(kind in KINDS, f"rotary scaling '{kind}' has no counterpart")
    require(kind == "yarn" or not (found.get("mscale") or found.get("mscale_all_dim")), f"mscale beside '{kind}' has no counterpart")
    require(not layer or found.get("truncate", True), "a ramp that is not truncated has no counterpart where layers differ")
    if kind == "dynamic":
        found[_TRAINED] = most
    elif kind != "linear":
        named = hf.get(_TRAINED) or found.get(_TRAINED)
        found[_TRAINED] = named or most
        if found.get("factor") is None and most and (named or most):
            found["factor"] = most / (named or most)
    known = (_TRAINED, *_OF[kind])
    given = {_NAMES[name]: found[name] for name in known if found.get(name) is not None}
    return RopeScaling.from_dict({"kind": kind, "part": float(turned), **given}, "rope_parameters").given(), base


def rope_settings(hf: dict[str, Any], prefix: str, theta: float = 10000.0, part: float | None = None) -> dict[str, Any]:
    """Settings `prefix.rope` and `prefix.rope_theta`; part None: theirs has no partial rotation."""
    rope, base = read_rope(hf, theta, part)
    return {**({} if part is None and rope == 1.0 else {f"{prefix}.rope": rope}), f"{prefix}.rope_theta": base}


def write_rope(rope: Any, theta: float, partial: bool = False, layered: bool = False) -> dict[str, Any]:
    """Their `rope_parameters`, and `max_position_embeddings` where a scaling says it.

    Args:
        rope, theta: a mixer's settings `rope` and `rope_theta`. partial: theirs names the rotated part.
        layered: theirs says it for each type of layer.
    """
    own = rope_of(rope)
    scaling, part = scaling_of(own), {"partial_rotary_factor": part_of(own)} if partial else {}
    if scaling is None:
        return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **part}}
    require(scaling.truncate or not layered, "a ramp that is not truncated has no counterpart where layers differ")
    named = {name: getattr(scaling, _NAMES[name]) for name in _OF[scaling.kind]}
    for name in ("beta_fast", "high_freq_factor"):
        if name in named:
            named[name] = scaling.turns
    stated = {name: list(value) if isinstance(value, tuple) else value for name, value in named.items() if value is not None}
    longest = scaling.original if scaling.kind == "dynamic" else round(scaling.factor * scaling.original) if scaling.original else _LONGER
    return {
        "rope_parameters": {"rope_type": scaling.kind, "rope_theta": theta, **stated, **part},
        "max_position_embeddings": longest,
    }


def rope_of(value: Any) -> Rope:
    """A mixer's setting `rope` as a block keeps it: a number, the settings of a scaling, or text."""
    return float(value) if isinstance(value, (int, float)) else value if isinstance(value, RopeScaling) else RopeScaling.from_dict(value)


def turning_part(settings: dict[str, Any], default: float = 1.0) -> float:
    """The rotated part of a head that a mixer's settings say."""
    return part_of(rope_of(settings.get("rope", default)))


def write_ropes(kinds: dict[str, tuple[Any, float]], partial: bool = False) -> dict[str, Any]:
    """The same as :func:`write_rope` where each type of layer has a `rope` and `rope_theta` of its own."""
    written = {kind: write_rope(rope, theta, partial, layered=True) for kind, (rope, theta) in kinds.items()}
    longest = {each["max_position_embeddings"] for each in written.values() if "max_position_embeddings" in each}
    decided = {w["max_position_embeddings"] for w in written.values() if w["rope_parameters"]["rope_type"] == "dynamic"}
    require(len(decided) < 2, "dynamic scalings of one model have one trained length")
    most = {"max_position_embeddings": max(decided or longest)} if longest else {}
    return {"rope_parameters": {kind: each["rope_parameters"] for kind, each in written.items()}, **most}
