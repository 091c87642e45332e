"""`orrery list` and `orrery show`: what there is, and what one of them is made of."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import typer

from orrery.cli import output

LENGTHS = (1, 1024, 4096, 16384, 65536)  # tokens, for state and cost over length
SIZES = ("nano", "micro", "tiny", "small", "base")
_PARTS = ("mixer", "guide", "channel")


def list_names(
    pattern: str = typer.Argument("*", help="A wildcard, such as 'rwkv*'."),
    kind: str = typer.Option("", help="mixer, architecture, model, objective, optimizer, schedule, task, corpus, tokenizer, method."),
    tag: list[str] = typer.Option([], help="Only those with this tag (may be repeated)."),
    as_json: bool = typer.Option(False, "--json", help="For machines."),
) -> None:
    """Names that `create_model` and the other commands take.

    Example:  orrery list "mamba*"     orrery list --kind task     orrery list --tag recurrent
    """
    from orrery.core import registry
    from orrery.core.errors import ConfigError, UnknownNameError, suggest

    if kind and kind not in registry.KINDS:
        raise ConfigError(f"unknown kind '{kind}'.{suggest(kind, registry.KINDS)} Kinds: {', '.join(registry.KINDS)}")
    names = registry.names(pattern, kind or None, tuple(tag))
    if not names:
        known = registry.names(kind=kind or None)
        raise UnknownNameError(f"no name matches '{pattern}'.{suggest(pattern.strip('*'), known)}")
    entries = {name: registry.lookup(name) for name in names}
    if as_json:
        output.say_json([{**entry.to_dict(), "name": name} for name, entry in entries.items()])
        return
    rows = [
        (name, ", ".join(sorted(e.kinds)) if name == e.name else f"preset of {e.name}", e.year or "", e.summary)
        for name, e in entries.items()
    ]
    output.say_table(("name", "kind", "year", "summary"), rows)


def show(
    name: str = typer.Argument(..., help="A name of `orrery list`, or a pattern such as 'mamba2*3 + attention'."),
    size: str = typer.Option("", help="One size only, with its resolved config."),
    as_json: bool = typer.Option(False, "--json", help="For machines."),
) -> None:
    """What a model is made of, and what it costs: settings, sizes, FLOPs, bytes of state over length.

    Example:  orrery show mamba2     orrery show "gated-deltanet*3 + attention" --size tiny
    """
    facts = _facts(name)
    wanted = [size] if size else list(SIZES)
    facts["sizes"] = [_size_facts(name, each) for each in wanted] if facts["in_frame"] else []
    if as_json:
        output.say_json(facts)
        return
    for part in facts["parts"]:
        print(f"{part['name']}: {part['summary']}")
        print(f"  paper {part['paper']} ({part['year']}); tags {', '.join(part['tags']) or 'none'}")
        if part["presets"]:
            print(f"  published sizes: {', '.join(part['presets'])}")
        for setting in part["settings"]:
            print(f"    {setting['name']} = {setting['default']!r}  ({setting['of']})")
    if facts["sizes"]:
        _print_sizes(facts["sizes"])
    if size and facts["sizes"]:
        output.say_json(facts["sizes"][0]["config"])


def _print_sizes(sizes: list[dict[str, Any]]) -> None:
    headings = ("size", "width x depth", "parameters", "train FLOPs/token", *(f"state at {n:,}" for n in LENGTHS))
    rows = [
        (
            s["size"],
            f"{s['width']} x {s['depth']}",
            output.count(s["parameters"]) + (f" ({output.count(s['active'])} active)" if s["active"] < s["parameters"] else ""),
            output.count(s["train_flops_per_token"]),
            *(output.size(s["state_bytes"][str(n)]) for n in LENGTHS),
        )
        for s in sizes
    ]
    output.say_table(headings, rows, right=range(1, 4 + len(LENGTHS)))
    print("parameters without embedding and head; FLOPs: three forward passes at 1,024 tokens, by formula, without the head;")
    print("state: bytes a sequence after so many tokens, by formula, in the parameters' type")


def _facts(name: str) -> dict[str, Any]:
    from orrery.core import registry
    from orrery.models.patterns import parse_pattern

    branches = dict.fromkeys(branch.name for layer in parse_pattern(name) for branch in layer)
    parts = [{**registry.lookup(each).to_dict(), "settings": _settings(each)} for each in branches]
    in_frame = all({"architecture", "mixer"} & set(registry.lookup(each).kinds) for each in branches)
    return {"name": name, "parts": parts, "in_frame": in_frame}


def _settings(name: str) -> list[dict[str, Any]]:
    """Settings with their defaults, and whose they are."""
    from orrery.core import registry
    from orrery.models.build import resolve
    from orrery.models.config import EncoderDecoderConfig
    from orrery.nn.block import part_config

    entry = registry.lookup(name)
    if not {"architecture", "mixer"} & set(entry.kinds):
        kind = next(iter(entry.kinds))
        config = getattr(registry.load(entry.name, kind), "Config", None)
        fields = dataclasses.fields(config) if config else ()
        return [{"name": f.name, "default": None if f.default is dataclasses.MISSING else f.default, "of": entry.name} for f in fields]
    config = resolve(entry.name, "tiny")
    if isinstance(config, EncoderDecoderConfig):
        stacks = {"encoder.": config.encoder.blocks, "decoder.": config.decoder.blocks}
    else:
        stacks = {"": config.blocks}
    found = []
    for side, blocks in stacks.items():
        whole, known = blocks[0].to_dict(), set()
        found += [{"name": side + key, "default": value, "of": "block"} for key, value in whole.items() if key not in _PARTS]
        for block in blocks:  # a later layer's parts by their own names
            for kind, spec in (("mixer", block.mixer), ("guide", block.guide), ("channel", block.channel)):
                if spec and spec["name"] not in known:
                    known.add(spec["name"])
                    home = side + (kind if block is blocks[0] else spec["name"])
                    resolved = part_config(spec, "mixer" if kind == "guide" else kind).to_dict()
                    found += [{"name": f"{home}.{key}", "default": value, "of": spec["name"]} for key, value in resolved.items()]
    return found


def _size_facts(name: str, size: str) -> dict[str, Any]:
    from orrery.models.build import build, resolve
    from orrery.models.config import EncoderDecoderConfig
    from orrery.models.shapes import shapes_only

    config = resolve(name, size)
    with shapes_only():
        model = cast(Any, build(config))
    return {
        "size": size,
        "width": config.width,
        "depth": config.encoder.depth + config.decoder.depth if isinstance(config, EncoderDecoderConfig) else config.depth,
        "parameters": model.num_parameters(),
        "active": model.num_parameters(active=True),
        "train_flops_per_token": 3 * model.flops(1024, head=False) / 1024,
        "state_bytes": {str(n): model.state_bytes(n) for n in LENGTHS},
        "config": cast(Any, config).to_dict(),
    }
