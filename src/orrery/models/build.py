"""`create_model`: from a name or pattern, a size and overrides to a model.

Resolution, in this order, later wins: the architecture's defaults, the ladder (head size, fine dimension), a preset's
settings, settings written behind a name in a pattern, the caller's overrides. The result is one resolved config of a frame
(:class:`DecoderConfig`, :class:`EncoderConfig`, :class:`EncoderDecoderConfig`); the model is built from that alone.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import nn

from orrery.core import registry
from orrery.core.config import apply_overrides, field_types
from orrery.core.errors import ConfigError, suggest
from orrery.core.seeds import seed_everything
from orrery.models.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from orrery.models.decoder import DecoderLM
from orrery.models.encode_config import both_ways, encoder_place, encoder_settings, head_spec, pair_head
from orrery.models.encoder import Encoder
from orrery.models.encoder_decoder import pair_frame
from orrery.models.ladder import rung, solve
from orrery.models.patterns import Branch, Layer, parse_pattern
from orrery.models.shapes import shapes_only
from orrery.nn.architecture import Architecture, default_architecture
from orrery.nn.block import Block, BlockConfig
from orrery.nn.contract import Place
from orrery.nn.sharing import common_names

DEFAULT_SIZE = "tiny"
DEFAULT_VOCAB = 257  # the byte tokenizer's
FRAMES = ("decoder", "encoder", "encoder-decoder")
Resolved = DecoderConfig | EncoderConfig | EncoderDecoderConfig
_FRAME = ("tied", "norm", "eps", "embed_norm", "positions", "max_positions", "dropout", "embed_std", "softcap")
_BLOCK = ("norm", "eps", "placement", "canon", "dropout", "scales", "gate", "gate_bias", "common")


def create_model(
    name: str,
    size: str | None = None,
    *,
    vocab_size: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    seed: int | None = None,
    frame: str | None = None,
    **overrides: Any,
) -> nn.Module:
    """Build a model by name.

    Args:
        name: an architecture, mixer, preset or whole model of `orrery list`, or a pattern such as "mamba2*3 + attention".
        size: a rung of the ladder (nano, micro, tiny, small, base); `tiny` when neither size, width nor depth is given.
        vocab_size: V; a preset's own, else 257 (bytes).
        width, depth: D and number of layers; with a size, the rest of the ladder still holds.
        seed: draws the initial parameters from this seed, whatever was drawn before; None: from torch's global state.
        frame: "encoder" makes an encoder of an architecture that is none (causal mixers run both ways); None: what it is.
        **overrides: any setting: of the frame (`tied=False`), of all blocks (`canon="abcd"`), of the mixer or channel
            mixer (`state=64`, or dotted `**{"mixer.state": 64}`, `**{"mamba2.state": 64}` in a hybrid). Of an encoder also its
            head (`head="classification", labels=3`, `**{"head.pool": "mean"}`); of an encoder-decoder "encoder.X" and
            "decoder.X" reach one of the two, and a head makes it read with both (:class:`orrery.models.encoder_decoder.PairReader`).

    Raises:
        UnknownNameError, ConfigError: with near matches.
    """
    whole = _whole_model(name)
    if whole is not None:
        given = {key: value for key, value in (("width", width), ("depth", depth)) if value}
        sized = getattr(registry.load(whole.name, "model"), "sized", None)  # of a model that comes in sizes
        return _build_whole(name, whole, vocab_size, seed, {**(sized(size) if sized and size else {}), **overrides, **given})
    config = resolve(name, size, vocab_size=vocab_size, width=width, depth=depth, overrides=overrides, frame=frame)
    return build(config, seed)


def build(config: Resolved, seed: int | None = None) -> nn.Module:
    """A model from its resolved config."""
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            seed_everything(seed)
        if isinstance(config, EncoderDecoderConfig):
            return pair_frame(config)
        return Encoder(config) if isinstance(config, EncoderConfig) else DecoderLM(config)


def resolve(
    name: str,
    size: str | None = None,
    *,
    vocab_size: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    frame: str | None = None,
) -> Resolved:
    """The resolved config that :func:`create_model` builds; the override `pattern` replaces a named pattern's own."""
    written = parse_pattern(name)
    presets: dict[str, Any] = {}
    for layer in written:
        for branch in layer:
            presets.update(_preset(branch.name))
    given = {**{k: v for k, v in presets.items() if k not in ("width", "depth", "vocab_size")}, **(overrides or {})}
    lead, layers = find_architecture(written[0][0].name), _spell_out(written, given.pop("pattern", None))
    vocab_size = vocab_size or presets.get("vocab_size", DEFAULT_VOCAB)
    width, depth = width or presets.get("width"), depth or presets.get("depth")
    draft = _DRAFTS[_frame(name, frame, layers, lead)](name, layers, int(vocab_size), given, lead)
    if size is None and width is None and depth is None:
        size = DEFAULT_SIZE
    return draft.on_ladder(size, width, depth) if size else draft.free(width, depth)


def _frame(name: str, frame: str | None, layers: list[Layer], lead: Architecture) -> str:
    """The frame that a pattern is built in: the one asked for, or its first architecture's own."""
    if frame is not None and frame not in FRAMES:
        raise ConfigError(f"unknown frame '{frame}'.{suggest(frame, FRAMES)} Frames: {', '.join(FRAMES)}")
    kind = frame or lead.kind
    if kind not in (lead.kind, "encoder"):
        raise ConfigError(f"'{name}' is built as {lead.kind} and cannot be a {kind}")
    for branch in (branch for layer in layers for branch in layer):
        if kind == "decoder" and _bidirectional(branch.name):
            raise ConfigError(f"'{branch.name}' sees the future and cannot be a layer of a decoder; pass frame='encoder'")
    return kind


def _bidirectional(name: str) -> bool:
    architecture = find_architecture(name)
    mixer = architecture.block.mixer["name"] if architecture.block is not None else name
    return architecture.kind == "encoder" or "bidirectional" in registry.lookup(mixer, "mixer").tags


class _Draft:
    """A pattern on its way to a config: everything but width, depth and the fine dimensions is known."""

    def __init__(
        self, name: str, layers: list[Layer], vocab_size: int, overrides: Mapping[str, Any], lead: Architecture
    ) -> None:
        self.name, self.layers, self.vocab_size, self.overrides, self.lead = name, layers, vocab_size, overrides, lead
        self.grain = 1  # parts that a step of a fine dimension is cut into
        self.kinds = list(dict.fromkeys(layers))
        self.architectures = {kind: [find_architecture(branch.name) for branch in kind] for kind in self.kinds}

    def depth(self, base: int) -> int:
        """The ladder's depth times the mean depth factor, in whole repetitions of the pattern."""
        factor = sum(max(a.depth_factor for a in self.architectures[layer]) for layer in self.layers) / len(self.layers)
        return max(1, round(base * factor / len(self.layers))) * len(self.layers)

    def on_ladder(self, size: str, width: int | None, depth: int | None) -> Resolved:
        step = rung(size)
        depth = depth or self.depth(step.depth)
        multiples = [a.width_step or step.head_dim for kind in self.kinds for a in self.architectures[kind]]

        known: dict[str, Any] = {}  # scales that round to the same fine dimension are counted once

        def count(w: int, scale: float) -> int:
            return _count(self.config(w, depth, step.head_dim, scale), known)

        refused: ConfigError | None = None
        for self.grain in (1, 2, 4, 8):  # a large step of the fine dimension may miss the size from both sides
            try:
                found, scale = solve(functools.cache(count), step.parameters, math.lcm(*multiples), width)
                return self.config(found, depth, step.head_dim, scale)
            except ConfigError as error:
                refused = refused or error
        assert refused is not None
        raise refused

    def free(self, width: int | None, depth: int | None) -> Resolved:
        """Width and depth as given, everything else at its natural value."""
        width = width or 256
        head = next((h for h in (64, 32, 16, 8, 4, 2) if width % h == 0), None)
        return self.config(width, depth or self.depth(6), head, 1.0)

    def config(self, width: int, depth: int, head_dim: int | None, scale: float) -> Resolved:
        data = {**self._data(width, depth, head_dim, scale), **self.lead.frame}
        for key, value in self.overrides.items():
            _apply(data, self.kinds, key, value)
        return DecoderConfig.from_dict(data)

    def _data(self, width: int, depth: int, head_dim: int | None, scale: float) -> dict[str, Any]:
        """What every frame's config begins with."""
        return {
            "architecture": self.name,
            "vocab_size": self.vocab_size,
            "width": width,
            "blocks": [self._block(kind, width, head_dim, scale) for kind in self.kinds],
            "layout": [self.kinds.index(self.layers[i % len(self.layers)]) for i in range(depth)],
        }

    def _block(self, kind: Layer, width: int, head_dim: int | None, scale: float) -> dict[str, Any]:
        specs = []
        for branch, architecture in zip(kind, self.architectures[kind], strict=True):
            block = cast(BlockConfig, architecture.block).to_dict()
            own = branch.name.rpartition("/")[2]
            layer, _, head = (architecture.head or "").rpartition("/")
            if head and head_dim and (not layer or own in layer.split("+")):
                _apply_block(block, head, head_dim, branch.name)
                if block.get("cross") and head == "mixer.head_dim":
                    block["cross"]["head_dim"] = head_dim
            layer, _, fine = architecture.fine.rpartition("/")
            there = block["channel"] is not None or not fine.startswith("channel.")
            if fine and there and (len(kind) == 1 or fine.startswith("mixer.")) and layer in ("", own):
                block = apply_overrides(block, {fine: _fine(architecture, width, scale, self.grain)})
            for key, value in sorted(branch.settings, key=lambda setting: not setting[0].endswith(".name")):
                _apply_block(block, key, value, branch.name)
            specs.append(block)
        return specs[0] if len(specs) == 1 else _side_by_side(specs, width, scale)


class _EncoderDraft(_Draft):
    """The same on its way to an encoder: what is causal runs both ways."""

    def config(self, width: int, depth: int, head_dim: int | None, scale: float) -> Resolved:
        data = self._data(width, depth, head_dim, scale)
        data["blocks"] = [both_ways(block) for block in data["blocks"]]
        data.update(encoder_settings(dataclasses.replace(self.lead, frame=_of_side(self.lead.frame, "encoder"))))
        head, rest = head_spec(self.lead, self.overrides)
        for key, value in rest.items():
            place = encoder_place(key)
            if place is None:
                _apply(data, self.kinds, key, value)
                continue
            data = apply_overrides(data, {place: value})
            for block in data["blocks"] if key in _BLOCK else ():
                block[key] = value
        return EncoderConfig.from_dict({**data, "head": head})


class _PairDraft(_Draft):
    """The same on its way to an encoder-decoder: both stacks grow together."""

    def depth(self, base: int) -> int:
        """Layers of each stack: half of the ladder's."""
        return super().depth(max(1, round(base / 2)))

    def config(self, width: int, depth: int, head_dim: int | None, scale: float) -> Resolved:
        head, own = pair_head(self.lead, self.overrides)
        silent = {} if head is None else {"small_logits": False}  # no token is scored, so nothing is made ready for that
        pair = {key: self.overrides.get(key, value) for key, value in {"shared": True, **self.lead.pair, **silent}.items()}
        own = {key: value for key, value in own.items() if key not in _PAIR}
        stacks = {}
        for side, draft in (("encoder", _EncoderDraft), ("decoder", _Draft)):
            settings = _of_side(own, side)
            layers = int(settings.pop("depth", None) or depth)
            frame = _of_side(self.lead.frame, side)
            lead = dataclasses.replace(self.lead, frame={**frame, "tied": True} if side == "decoder" and head is not None else frame)
            stack = draft(self.name, self.layers, self.vocab_size, settings, lead)
            if side == "encoder":
                stack.overrides = {**{key: value for key, value in settings.items() if key not in _DECODER_ONLY}, "head": None}
            else:
                stack.architectures = {kind: [_decoding(a) for a in found] for kind, found in stack.architectures.items()}
            stacks[side] = stack.config(width, layers, head_dim, scale).to_dict()
        return EncoderDecoderConfig.from_dict({"architecture": self.name, **stacks, **pair, **_given(self.overrides), "head": head})


_DRAFTS: dict[str, type[_Draft]] = {"decoder": _Draft, "encoder": _EncoderDraft, "encoder-decoder": _PairDraft}
_PAIR = ("shared", "small_logits", "start", "stop")
_DECODER_ONLY = ("tied", "softcap")


def _given(overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {key: overrides[key] for key in _PAIR if key in overrides}


def _of_side(settings: Mapping[str, Any], side: str) -> dict[str, Any]:
    """Settings of one stack: those without a side, and those that name it."""
    found = {key: value for key, value in settings.items() if key.partition(".")[0] not in ("encoder", "decoder")}
    return {**found, **{key.partition(".")[2]: value for key, value in settings.items() if key.partition(".")[0] == side}}


def _decoding(architecture: Architecture) -> Architecture:
    if architecture.decoder is None:
        raise ConfigError("only an encoder-decoder's layers can be stacked as one")
    return dataclasses.replace(architecture, block=architecture.decoder)


def _side_by_side(specs: list[dict[str, Any]], width: int, scale: float) -> dict[str, Any]:
    """One layer with several mixers; its channel mixer is that of the first branch that has one, else SwiGLU."""
    block = dict(specs[0])
    block["mixer"] = {"name": "parallel", "branches": [spec["mixer"] for spec in specs]}
    channel = dict(next((spec["channel"] for spec in specs if spec["channel"]), {"name": "glu"}))
    if channel["name"] in ("glu", "mlp"):
        channel["hidden"] = max(8, 8 * round(scale * (8 / 3 if channel["name"] == "glu" else 4) * width / 8))
    block["channel"] = channel
    return block


def _fine(architecture: Architecture, width: int, scale: float, grain: int = 1) -> int:
    natural, step = architecture.fine_ratio * width + architecture.fine_base, max(1, architecture.fine_step // grain)
    return max(1, round(scale * natural / step)) * step


def _count(config: Resolved, known: dict[str, Any]) -> int:
    """Parameters without embedding and head, from blocks on the meta device; `known` collects those of single blocks."""
    if isinstance(config, EncoderDecoderConfig):
        return _count(config.encoder, known) + _count(config.decoder, known)
    norm, total = {"layernorm": 2, "none": 0, "simple-rmsnorm": 0}.get(config.norm, 1), 0
    if isinstance(config, EncoderConfig):
        own = config.embedding.width or config.width
        total += norm * (config.width * config.final_norm + own * config.embedding.norm)
        total += (own + 1) * config.width if own != config.width else 0
    else:
        total += norm * config.width * (1 + config.embed_norm)
    for index, block in enumerate(config.blocks):
        layers = config.layout.count(index)
        first = int(config.layout[0] == index)  # the first layer may lack what refers to an earlier one
        common: dict[str, int] = {}
        for layer, number in ((0, first), (config.depth - 1, layers - first)):
            if number > 0:
                own, shared = _count_block(block, Place(width=config.width, layer=layer, depth=config.depth), known)
                total, common = total + number * own, common | shared
        total += sum(common.values())
    return total


def _count_block(block: BlockConfig, place: Place, known: dict[str, Any]) -> tuple[int, dict[str, int]]:
    """Parameters of a layer's own, and by name those that it has in common with others of its kind."""
    key = json.dumps([block.to_dict(), place.to_dict()], sort_keys=True)
    if key not in known:
        with shapes_only():
            made = Block(block, place)
        shared = {name: made.get_parameter(name).numel() for name in common_names(made, block.common)}
        known[key] = sum(p.numel() for p in made.parameters()) - sum(shared.values()), shared
    return cast("tuple[int, dict[str, int]]", known[key])


def _spell_out(written: list[Layer], own: str | None) -> list[Layer]:
    """Layers with the patterns that names stand for in their place; `own` replaces that of a single name."""
    if own is not None and (len(written) > 1 or not find_architecture(written[0][0].name).pattern):
        raise ConfigError("pattern= is a setting of architectures whose name stands for a pattern; write the pattern as the name")
    found: list[Layer] = []
    for layer in written:
        for branch in layer:
            architecture = find_architecture(branch.name)
            if not architecture.pattern:
                continue
            if len(layer) > 1 or branch.settings:
                raise ConfigError(f"'{branch.name}' stands for several layers ({architecture.pattern}): it stands alone, without settings")
            home = registry.lookup(branch.name).name
            inner = parse_pattern(own or architecture.pattern)
            found += [tuple(_at_home(part, home, architecture) for part in each) for each in inner]
            break
        else:
            found.append(layer)
    return found


def _at_home(branch: Branch, home: str, architecture: Architecture) -> Branch:
    return Branch(f"{home}/{branch.name}", branch.settings) if branch.name in architecture.blocks else branch


def find_architecture(name: str) -> Architecture:
    """The architecture behind a name of a pattern: an architecture's, a preset's, a mixer's, or "architecture/layer"."""
    home, _, part = name.partition("/")
    if part:
        whole = cast(Architecture, registry.load(registry.lookup(home, "architecture").name, "architecture"))
        if part not in whole.blocks:
            raise ConfigError(f"'{home}' has no layer '{part}'.{suggest(part, whole.blocks)} Known: {', '.join(whole.blocks) or 'none'}")
        return dataclasses.replace(whole, block=whole.blocks[part], pattern="")
    entry = registry.lookup(name)
    if "architecture" in entry.kinds:
        return cast(Architecture, registry.load(entry.name, "architecture"))
    if "mixer" in entry.kinds:
        return default_architecture(entry.name)
    raise ConfigError(f"'{name}' is a {' and '.join(entry.kinds)} and cannot be a layer of a model")


def is_pair(name: str) -> bool:
    """Whether a name or pattern is built as an encoder-decoder; whole models are not asked."""
    lead = parse_pattern(name)[0][0].name
    entry = registry.lookup(lead.partition("/")[0])
    return bool({"architecture", "mixer"} & set(entry.kinds)) and find_architecture(lead).kind == "encoder-decoder"


def _preset(name: str) -> Mapping[str, Any]:
    entry = registry.lookup(name.partition("/")[0])
    if name not in entry.presets:
        return {}
    presets = find_architecture(name).presets
    if name not in presets:
        raise ConfigError(f"{entry.module} announces the preset '{name}' but does not define it")
    return presets[name]


def _apply(data: dict[str, Any], kinds: list[Layer], key: str, value: Any) -> None:
    """Put one override where it belongs: the frame, or every block that knows it."""
    head, _, rest = key.partition(".")
    if not rest and key in _FRAME:
        data[key] = value
        if key not in _BLOCK:
            return
    touched = key in _FRAME
    for block, kind in zip(data["blocks"], kinds, strict=True):
        layers = {name for branch in kind for name in _names(branch)}
        named = bool(rest) and head in layers | _part_names(block)
        if rest and head not in ("mixer", "channel", "cross", "guide") and not named:
            continue
        try:
            if named and block["mixer"]["name"] == "parallel" and head != "parallel":
                _apply_branches(block, kind, head, rest, value, data["architecture"])
            else:
                own = next((kind for kind in ("mixer", "guide") if (block.get(kind) or {}).get("name") == head), "channel")
                part = "" if "." in rest or head in layers else f"{own}."
                _apply_block(block, part + rest if named else key, value, data["architecture"])
            touched = True
        except ConfigError:
            if (not rest and len(data["blocks"]) > 1) or touched:
                continue
            raise
    if not touched:
        known = {k for block in data["blocks"] for k in _known(block)} | set(_FRAME) | {"width", "depth", "vocab_size"}
        hint = _whole(key, known) or suggest(key, known)
        raise ConfigError(f"unknown setting '{key}'.{hint} `orrery show {data['architecture']}` lists the settings.")


def _names(branch: Branch) -> tuple[str, str]:
    """A layer may be named with or without the architecture that it belongs to."""
    return branch.name, branch.name.rpartition("/")[2]


def _parts(block: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The part of a kind, and behind a parallel or two-way mixer its branches."""
    part = block.get(kind)
    return [part, *part.get("branches", ())] if part else []


def _part_names(block: dict[str, Any]) -> set[str]:
    return {part["name"] for kind in ("mixer", "guide", "channel") for part in _parts(block, kind)}


def _fields(part: dict[str, Any], kind: str) -> set[str]:
    return set(field_types(registry.load(part["name"], "mixer" if kind in ("cross", "guide") else kind).Config))


def _known(block: dict[str, Any]) -> set[str]:
    return set(_BLOCK).union(*(_fields(part, kind) for kind in ("mixer", "guide", "channel") for part in _parts(block, kind)))


def _apply_branches(block: dict[str, Any], kind: Layer, name: str, key: str, value: Any, model: str) -> None:
    """Set `key` in the branches of a parallel layer that `name` means: by the pattern's words or by their mixers'; else in
    the channel mixer of that name."""
    branches = block["mixer"]["branches"]
    words = [_names(branch) for branch in kind] if len(kind) == len(branches) else [()] * len(branches)
    meant = [(part, "mixer") for part, known in zip(branches, words, strict=True) if name in (part["name"], *known)]
    if block["channel"] and block["channel"]["name"] == name:
        meant.append((block["channel"], "channel"))
    able = [(part, part_kind) for part, part_kind in meant if key.removeprefix("mixer.") in _fields(part, part_kind)]
    for part, _ in able:
        part[key.removeprefix("mixer.")] = value
    if not able:
        names = sorted(set().union(*(_fields(*each) for each in meant)))
        raise ConfigError(f"unknown setting '{key}' of {name} in {model}.{_whole(key, names) or suggest(key, names)} Known: {', '.join(names)}")


def _apply_block(block: dict[str, Any], key: str, value: Any, name: str) -> None:
    """Set `key` in a block: a field of the block, of its mixer, or of its channel mixer; the mixer is asked first."""
    head, _, rest = key.partition(".")
    if not rest and key in _BLOCK:
        block[key] = value
        return
    for kind in ("mixer", "guide", "channel") if not rest else (head,):  # a part that reads a memory is named: "cross.heads"
        parts = _parts(block, kind)
        if parts and rest == "name":
            known = _fields({"name": value}, kind)
            block[kind] = {"name": value, **{setting: own for setting, own in parts[0].items() if setting in known}}
            return
        able = [part for part in parts if (rest or key) in _fields(part, kind)]
        for part in able[:1] if able and able[0] is parts[0] else able:
            part[rest or key] = value
        if able:
            reading = block.get("cross") if kind == "mixer" and not rest else None
            if reading and key in _fields(reading, "cross"):  # what is said of attention is said of both
                reading[key] = value
            return
    names = sorted(_known(block))
    raise ConfigError(f"unknown setting '{key}' of {name}.{_whole(key, names) or suggest(rest or key, names)} Known: {', '.join(names)}")


def _whole(key: str, known: Collection[str]) -> str:
    """What to say of a dotted setting that reaches into one of the `known`."""
    into = next((part for part in key.split(".")[:-1] if part in known), None)
    example = ', as rope="yarn(factor=4, original=4096)"' if into == "rope" else ""
    return f" '{into}' is given whole{example}." if into else ""


def _whole_model(name: str) -> registry.Entry | None:
    """The entry when `name` is one whole model that fits no frame; its settings may stand in parentheses."""
    plain = name.split("(")[0].strip()
    if any(mark in name for mark in "+|*") or not plain:
        return None
    entry = registry.lookup(plain)
    return entry if set(entry.kinds) & {"architecture", "mixer", "model"} == {"model"} else None


def _build_whole(name: str, entry: registry.Entry, vocab_size: int | None, seed: int | None, overrides: dict[str, Any]) -> nn.Module:
    ((branch,),) = parse_pattern(name)
    cls = registry.load(entry.name, "model")
    settings = {"vocab_size": vocab_size or DEFAULT_VOCAB, **dict(branch.settings), **overrides}
    config = cls.Config.from_dict(settings, where=entry.name)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            seed_everything(seed)
        return cast(nn.Module, cls(config))


__all__ = ["Branch", "BlockConfig", "Resolved", "build", "create_model", "resolve"]
