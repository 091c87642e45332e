"""`from_transformers` and `to_transformers`: the interpreter of exchange maps.

A Hugging Face model, or a folder with its `config.json` and safetensors, becomes a model here with equal outputs, and
back. transformers itself is not needed for folders. Pickled checkpoints are refused.

Every parameter of ours must be filled and every tensor of theirs used, or the exchange fails by name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from orrery.core import registry
from orrery.core.config import require
from orrery.core.errors import ConfigError, CorruptionError, suggest
from orrery.core.files import atomic_directory, read_json, write_json
from orrery.models.build import create_model, find_architecture
from orrery.models.decoder import DecoderLM
from orrery.models.encoder import Encoder
from orrery.models.encoder_decoder import PairFrame
from orrery.models.exchange_heads import find_head, head_settings, label_settings, written_head
from orrery.models.storage import passing_tensors, write_tensors
from orrery.nn.exchange import ExchangeMap, HeadMap, Rule


def from_transformers(source: Any, dtype: torch.dtype | None = None) -> nn.Module:
    """A model with equal outputs.

    Args:
        source: a `transformers` model, or a folder that `save_pretrained` wrote.
        dtype: of the result; None keeps float64 as it is and makes everything else float32.

    Raises:
        ConfigError: for a model type or a setting that has no counterpart here.
        CorruptionError: for missing, unexpected or misshapen tensors.
    """
    config, tensors = _read_source(source)
    exchange, name = find_map(str(config.get("model_type")), str(next(iter(config.get("architectures") or ()), "")))
    tensors = _stack_experts(_named(tensors, exchange))
    if exchange.prepare is not None:
        tensors = exchange.prepare(config, tensors)
    arguments, head = exchange.read(config), find_head(config, tensors, exchange)
    if exchange.heads:
        arguments["head"] = head_settings(config, head)
    width, depth, vocab_size = (int(arguments.pop(key)) for key in ("width", "depth", "vocab_size"))
    with torch.device("meta"):
        model: Any = create_model(name, vocab_size=vocab_size, width=width, depth=depth, **arguments)
    wide = any(t.dtype == torch.float64 for t in tensors.values())
    dtype = dtype or (torch.float64 if wide else torch.float32)
    marks = {name: dict(vars(parameter)) for name, parameter in model.named_parameters()}
    model = model.to_empty(device="cpu").to(dtype)
    for parameter, mark in marks.items():
        vars(model.get_parameter(parameter)).update(mark)  # no_decay and its like, which to_empty forgets
    model.tie()  # to_empty separates what was shared
    _fill(model, exchange, tensors, head)
    return cast(nn.Module, model)


def to_transformers(model: nn.Module, path: str | Path) -> Path:
    """Write a folder that transformers' `from_pretrained(path)` of the class in its config reads.

    Raises:
        ConfigError: when the architecture has no map, or uses a setting that they cannot express.
    """
    if not isinstance(model, (DecoderLM, Encoder, PairFrame)):
        raise ConfigError(f"{type(model).__name__} has no exchange map; only models of `create_model` can be exchanged")
    exchange, config = _written(model)
    head = written_head(model, exchange)
    config = {**config, "model_type": exchange.model_type, "architectures": [head.cls if head is not None else exchange.cls]}
    config.update(label_settings(model, head))
    config["dtype"] = str(model.embed.weight.dtype).removeprefix("torch.")
    tensors = export_tensors(model, exchange, head)
    if exchange.finish is not None:
        tensors = {name: tensor.contiguous() for name, tensor in exchange.finish(config, tensors).items()}
    with atomic_directory(path) as folder:
        write_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
        write_json(folder / "config.json", config)
    return Path(path)


def find_map(model_type: str, cls: str = "") -> tuple[ExchangeMap, str]:
    """The map for their model type, or for one class of it that has a map of its own, and the architecture that has it."""
    known = {}
    for entry in registry.entries("architecture"):
        for each in entry.exchange:
            known[each] = entry.name
    wanted = f"{model_type}:{cls}" if f"{model_type}:{cls}" in known else model_type
    if wanted not in known:
        raise ConfigError(f"no exchange for the model type '{model_type}'.{suggest(model_type, known)} Known: {', '.join(sorted(known))}")
    name = known[wanted]
    maps = registry.load(name, "architecture").exchange
    return next(each for each in maps if each.model_type == model_type), name


def _written(model: Any) -> tuple[ExchangeMap, dict[str, Any]]:
    """The first of the architecture's maps that can express the model, and their config."""
    first: ConfigError | None = None
    for exchange in _maps_of(model):
        try:
            config = exchange.write(model.config.to_dict())
            _check_told(model, exchange, config)
            return exchange, config
        except ConfigError as problem:
            first = first or problem
    raise cast(ConfigError, first)


def _check_told(model: Any, exchange: ExchangeMap, config: Mapping[str, Any]) -> None:
    """Raise for what changes a model's outputs without a tensor of its own, unless their config says it."""
    own = model.config.to_dict()
    frames = [frame for frame in (own, own.get("encoder"), own.get("decoder")) if frame]
    capped = any(frame.get("softcap") is not None for frame in frames) and not any(name.endswith("soft_cap") for name in config)
    require(not capped, f"{exchange.model_type} has no place for softcap; this setting cannot be exchanged")
    architecture = find_architecture(model.config.architecture.split("(")[0].strip())
    known = [block.common for block in (architecture.block, architecture.decoder, *architecture.blocks.values()) if block is not None]
    found = [tuple(block.get("common") or ()) for frame in frames for block in frame.get("blocks", ())]
    shared = any(common and common not in [tuple(each) for each in known] for common in found)
    require(not shared, f"layers of {exchange.model_type} have no parameters in common but its own; this setting cannot be exchanged")


def _maps_of(model: Any) -> tuple[ExchangeMap, ...]:
    name = model.config.architecture.split("(")[0].strip()
    try:
        maps = registry.load(registry.lookup(name, "architecture").name, "architecture").exchange
    except (ConfigError, registry.UnknownNameError):
        maps = ()
    if not maps:
        raise ConfigError(f"'{model.config.architecture}' has no exchange map to transformers; use orrery.save to keep it")
    return cast("tuple[ExchangeMap, ...]", maps)


def _read_source(source: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if isinstance(source, (str, Path)):
        return _read_folder(Path(source))
    if not hasattr(source, "config") or not hasattr(source, "state_dict"):
        raise ConfigError(f"from_transformers takes a transformers model or a folder, not {type(source).__name__}")
    return {**source.config.to_dict(), "architectures": [type(source).__name__]}, dict(source.state_dict())


def _read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not (folder / "config.json").is_file():
        raise ConfigError(f"'{folder}' holds no config.json; pass a folder that save_pretrained wrote")
    config = read_json(folder / "config.json")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = any(folder.glob("*.bin"))
        reason = "only pickled weights, which are not read because they can run code" if pickled else "no safetensors file"
        raise ConfigError(f"'{folder}' holds {reason}; save it with safe_serialization=True")
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors.update(load_file(file))
        except SafetensorError as error:
            raise CorruptionError(f"'{file}' is damaged: {error}") from error
    return config, tensors


def _own(model: nn.Module) -> dict[str, Tensor]:
    """The model's tensors, shared ones once, under the first of their names."""
    named = model.state_dict(keep_vars=True).items()
    first: dict[int, str] = {}
    for name, tensor in named:
        first.setdefault(id(tensor), name)
    return {name: tensor for name, tensor in named if first[id(tensor)] == name}


def _fill(model: nn.Module, exchange: ExchangeMap, tensors: Mapping[str, Tensor], head: HeadMap | None) -> None:
    own = _own(model)
    theirs = tensors
    filled: set[str] = set()
    used: set[str] = set()
    for rule in _expand(exchange.rules + (head.rules if head is not None else ()), model):
        if rule.ours not in own:
            continue
        missing = [name for name in rule.theirs if name not in theirs]
        if missing:
            raise CorruptionError(f"the {exchange.model_type} checkpoint lacks {missing[0]}, which {rule.ours} needs")
        parts = [_step(theirs[name], rule.step(k), _mixer(rule, model)) for k, name in enumerate(rule.theirs)]
        value = torch.cat(parts) if len(parts) > 1 else parts[0]
        if value.shape != own[rule.ours].shape:
            raise CorruptionError(f"{' + '.join(rule.theirs)} has shape {tuple(value.shape)}, {rule.ours} {tuple(own[rule.ours].shape)}")
        with torch.no_grad():
            own[rule.ours].copy_(value)
        filled.add(rule.ours)
        used.update(rule.theirs)
    if unfilled := sorted(own.keys() - filled):
        raise CorruptionError(f"no rule fills {unfilled[0]} (and {len(unfilled) - 1} more) from a {exchange.model_type} checkpoint")
    tied = {"lm_head.weight"} if "head.weight" not in own else set()
    ignored = exchange.ignored + (head.ignored if head is not None else ()) or ("\0",)
    left = [name for name in theirs if name not in used and name not in tied and not name.endswith(ignored)]
    if left:
        raise CorruptionError(f"the {exchange.model_type} checkpoint holds {left[0]} (and {len(left) - 1} more), which nothing here uses")


def export_tensors(model: nn.Module, exchange: ExchangeMap, head: HeadMap | None = None) -> dict[str, Tensor]:
    """The model's tensors under their names and in their layout."""
    own = {name: tensor.detach() for name, tensor in _own(model).items()}
    result: dict[str, Tensor] = {}
    done = set()
    for rule in _expand(exchange.rules + (head.rules if head is not None else ()), model):
        if rule.ours not in own:
            continue
        value = own[rule.ours]
        sizes = _part_sizes(rule, value, model)
        for k, (name, part) in enumerate(zip(rule.theirs, value.split(sizes), strict=True)):
            result[name] = _unstep(part, rule.step(k), _mixer(rule, model)).contiguous().clone()
        done.add(rule.ours)
    left = sorted(set(own) - done - passing_tensors(model))
    if left:
        raise ConfigError(f"{exchange.model_type} has no place for {left[0]} (and {len(left) - 1} more); this setting cannot be exchanged")
    return result


def _part_sizes(rule: Rule, value: Tensor, model: nn.Module) -> list[int]:
    """Rows of each part of a stacked tensor: as the rule says, equal, or q, k, v (and gate) of grouped-query attention."""
    if len(rule.theirs) == 1:
        return [len(value)]
    mixer = _mixer(rule, model)
    if rule.rows:
        return [int(getattr(mixer, name)) for name in rule.rows]
    if len(rule.theirs) in (3, 4) and hasattr(mixer, "kv_heads"):
        return [mixer.heads * mixer.head_dim, *[mixer.kv_heads * mixer.head_dim] * 2, mixer.heads * mixer.head_dim][: len(rule.theirs)]
    return [len(value) // len(rule.theirs)] * len(rule.theirs)


def _stack(ours: str, model: Any) -> tuple[Any, list[str]]:
    """The stack of layers that a name of ours speaks of, and the name's parts within it."""
    parts = ours.split(".")
    if not isinstance(model, PairFrame):
        return model, parts
    return (model.decoder, parts) if parts[0] == "head" else (getattr(model, parts[0]), parts[1:])


def _mixer(rule: Rule, model: Any) -> Any:
    """The mixer or guide of the layer, or the branch of a parallel layer, that an expanded rule speaks of."""
    stack, parts = _stack(rule.ours, model)
    block = stack.blocks[int(parts[1]) if parts[0] == "blocks" else 0]
    mixer = getattr(block, parts[2]) if parts[2:3] in (["cross"], ["guide"]) else block.mixer
    return mixer.branches[int(parts[4])] if parts[2:4] == ["mixer", "branches"] else mixer


def _expand(rules: tuple[Rule, ...], model: Any) -> list[Rule]:
    expanded = []
    for rule in rules:
        config = _stack(rule.ours, model)[0].config
        names = [config.blocks[kind].mixer["name"] for kind in config.layout]
        for i in range(len(names)) if "{i}" in rule.ours else (0,):
            if rule.mixer in ("", names[i]):
                theirs = tuple(name.replace("{i}", str(i)) for name in rule.theirs)
                expanded.append(dataclasses.replace(rule, ours=rule.ours.replace("{i}", str(i)), theirs=theirs))
    return expanded


def _named(tensors: Mapping[str, Tensor], exchange: ExchangeMap) -> dict[str, Tensor]:
    """Their tensors under full names: a bare backbone is saved without its prefix."""
    for prefix in exchange.prefixes:
        if not any(name.startswith(prefix) for name in tensors):
            return {(name if name.startswith("lm_head") else prefix + name): tensor for name, tensor in tensors.items()}
    return dict(tensors)


_EXPERT = re.compile(r"(?P<home>.*\.experts)\.(?P<number>\d+)\.(?P<map>gate_proj|w1|up_proj|w3|down_proj|w2)\.weight")


def _stack_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Experts that a file holds one by one, as models in memory have them: `gate_up_proj` (E,2F,D) or, of experts without a
    gate, `up_proj` (E,F,D); `down_proj` (E,D,F)."""
    found: dict[str, dict[int, dict[str, Tensor]]] = {}
    rest = {}
    for name, tensor in tensors.items():
        match = _EXPERT.fullmatch(name)
        if match is None:
            rest[name.replace(".block_sparse_moe.", ".mlp.")] = tensor
            continue
        kind = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}.get(match["map"], match["map"])
        home = match["home"].replace(".block_sparse_moe.", ".mlp.")
        found.setdefault(home, {}).setdefault(int(match["number"]), {})[kind] = tensor
    for home, experts in found.items():
        needed = {"gate_proj", "up_proj", "down_proj"} if any("gate_proj" in maps for maps in experts.values()) else {"up_proj", "down_proj"}
        whole = sorted(experts) == list(range(len(experts))) and all(set(maps) == needed for maps in experts.values())
        if not whole:
            raise CorruptionError(f"the checkpoint lacks some tensors of {home}")
        maps = [experts[number] for number in range(len(experts))]
        if "gate_proj" in needed:
            rest[f"{home}.gate_up_proj"] = torch.stack([torch.cat([each["gate_proj"], each["up_proj"]]) for each in maps])
        else:
            rest[f"{home}.up_proj"] = torch.stack([each["up_proj"] for each in maps])
        rest[f"{home}.down_proj"] = torch.stack([each["down_proj"] for each in maps])
    return rest


def _rotary_order(rows: int, mixer: Any) -> Tensor:
    """Their row for each of ours: pairs (j, j + R/2) become neighbours, head by head."""
    head, rotated = mixer.head_dim, mixer.rotated
    order = torch.arange(head)
    order[:rotated] = torch.arange(rotated).view(2, -1).t().flatten()
    return (torch.arange(rows // head)[:, None] * head + order).flatten()


def _heads_order(rows: int, mixer: Any) -> Tensor:
    """Their row for each of ours: (H,3,K) becomes (3,H,K)."""
    return torch.arange(rows).view(mixer.heads, 3, -1).transpose(0, 1).flatten()


_ORDERS = {"rotary": _rotary_order, "heads": _heads_order}


def _root_width(mixer: Any) -> float:
    """Gemma's factor on the embedding, rounded to bfloat16 as transformers has it."""
    return float(torch.tensor(mixer.place.width**0.5, dtype=torch.bfloat16))


def _step(tensor: Tensor, step: str, mixer: Any) -> Tensor:
    if step == "transpose":
        return tensor.t()
    if step in _ORDERS:
        return tensor[_ORDERS[step](len(tensor), mixer)]
    if step == "squeeze":
        return tensor.squeeze(1)
    if step == "flat":
        return tensor.flatten()
    if step in ("gain", "gain-root"):
        return (tensor + 1) / (_root_width(mixer) if step == "gain-root" else 1)
    return tensor * _root_width(mixer) if step == "root" else tensor


def _unstep(tensor: Tensor, step: str, mixer: Any) -> Tensor:
    if step == "transpose":
        return tensor.t()
    if step in _ORDERS:
        back = torch.empty_like(tensor)
        back[_ORDERS[step](len(tensor), mixer)] = tensor
        return back
    if step == "squeeze":
        return tensor.unsqueeze(1)
    if step == "flat":
        return tensor[None, None]
    if step in ("gain", "gain-root"):
        return tensor * (_root_width(mixer) if step == "gain-root" else 1) - 1
    return tensor / _root_width(mixer) if step == "root" else tensor
