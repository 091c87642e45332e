"""Save and load: safetensors and JSON in one folder, never pickle, whole or absent.

    config.json         {"format": 1, "kind": "decoder" | "encoder" | "encoder-decoder" | "model", "name": ..., "config": {...}, "orrery": version}
    model.safetensors   every parameter and buffer once (a tied head is not stored twice)
    manifest.json       SHA-256 and size of both

A reader checks the manifest, then that names, shapes and dtypes are those the config implies, before it allocates.
Names in a config are resolved through the registry only; nothing in a file can name code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from orrery.core import registry
from orrery.core.errors import ConfigError, CorruptionError, StorageError
from orrery.core.files import atomic_directory, read_json, verify_directory, write_json
from orrery.core.version import VERSION
from orrery.models.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from orrery.models.decoder import DecoderLM
from orrery.models.encoder import Encoder
from orrery.models.encoder_decoder import PairFrame, pair_frame

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
_FRAMES: dict[str, tuple[Any, Any]] = {
    "decoder": (DecoderConfig, DecoderLM),
    "encoder": (EncoderConfig, Encoder),
    "encoder-decoder": (EncoderDecoderConfig, pair_frame),
}


def save(model: nn.Module, path: str | Path, extra: dict[str, bytes] | None = None) -> Path:
    """Write a model to a folder, atomically.

    Args:
        model: what `create_model` built.
        path: the folder; an older save there is replaced once the new one is complete.
        extra: further files (a tokenizer's) by name, sealed by the same manifest.

    Raises:
        ConfigError: for a module that no config can rebuild (a wrapped one).
        StorageError: when it cannot be written; what stood there is intact.
    """
    record = describe(model)
    with atomic_directory(path) as folder:
        write_tensors(stored_tensors(model), folder / WEIGHTS)
        write_json(folder / CONFIG, record)
        for name, data in (extra or {}).items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    return Path(path)


def load(path: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> nn.Module:
    """Read a model that :func:`save` wrote.

    Raises:
        CorruptionError: when a checksum, a name, a shape or a dtype is not what it should be.
    """
    path = Path(path)
    verify_directory(path)
    model = from_description(read_json(path / CONFIG), where=str(path / CONFIG))
    read_weights(model, path / WEIGHTS)
    model.folder = path  # type: ignore[assignment]  # where a tokenizer saved beside it is found
    return model.to(device=device, dtype=dtype)


def describe(model: nn.Module) -> dict[str, Any]:
    """The JSON that rebuilds a model without its weights."""
    if isinstance(model, (DecoderLM, Encoder, PairFrame)) and not hasattr(model, "registered_name"):
        kind = next(kind for kind, (settings, _) in _FRAMES.items() if isinstance(model.config, settings))
        name, config = model.config.architecture, model.config.to_dict()
    elif hasattr(model, "registered_name") and hasattr(model, "config"):
        kind, name, config = "model", str(model.registered_name), cast(Any, model.config).to_dict()
    else:
        raise ConfigError(f"{type(model).__name__} was not built by create_model and cannot be saved; save its state_dict yourself")
    return {"format": FORMAT, "kind": kind, "name": name, "config": config, "orrery": VERSION}


def from_description(record: Any, where: str) -> nn.Module:
    """The inverse of :func:`describe`; parameters are freshly drawn."""
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CorruptionError(f"'{where}' is not a model config of format {FORMAT}")
    if record.get("kind") in _FRAMES:
        settings, frame = _FRAMES[record["kind"]]
        return frame(settings.from_dict(record["config"]))
    if record.get("kind") == "model":
        cls = registry.load(record["name"], "model")
        return cast(nn.Module, cls(cls.Config.from_dict(record["config"], where=record["name"])))
    raise CorruptionError(f"'{where}' describes a '{record.get('kind')}', which this version cannot build")


def stored_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and persistent buffer under one name; tied ones once. A model may name its own (`stored_tensors`)."""
    if hasattr(model, "stored_tensors"):
        return cast(dict[str, torch.Tensor], cast(Any, model).stored_tensors())
    seen: dict[int, str] = {}
    kept = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen[id(tensor)] = name
            kept[name] = tensor.detach().contiguous()
    return kept


def passing_tensors(model: nn.Module) -> set[str]:
    """Names of buffers that hold what only the next step of training needs (`passing` of their module): a file may lack them."""
    named = ((home, name) for home, module in model.named_modules() for name in getattr(module, "passing", ()))
    return {f"{home}.{name}" if home else name for home, name in named}


def write_tensors(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file; a full disk is a StorageError, as it is for every other file."""
    try:
        save_file(tensors, file, metadata)
    except SafetensorError as error:
        raise StorageError(f"cannot write '{file.name}': {error}; free some space or choose another place") from error


def read_weights(model: nn.Module, file: str | Path) -> None:
    """Fill a model's tensors from a safetensors file, which must hold exactly them, but for :func:`passing_tensors`.

    Raises:
        CorruptionError: naming the tensors that are missing, unexpected, or of another shape.
    """
    if hasattr(model, "restore_tensors"):  # tables whose sizes only the file knows
        try:
            cast(Any, model).restore_tensors(load_file(file))
        except SafetensorError as error:
            raise CorruptionError(f"'{file}' is damaged: {error}") from error
        return
    wanted = stored_tensors(model)
    try:
        with safe_open(str(file), framework="pt") as handle:
            found = set(handle.keys())
            missing, unknown = sorted(wanted.keys() - found - passing_tensors(model)), sorted(found - wanted.keys())
            if missing or unknown:
                raise CorruptionError(
                    f"'{file}' does not belong to this architecture: {len(missing)} tensors missing {missing[:3]}, "
                    f"{len(unknown)} unexpected {unknown[:3]}"
                )
            wanted = {name: tensor for name, tensor in wanted.items() if name in found}
            for name, tensor in wanted.items():
                shape = tuple(handle.get_slice(name).get_shape())
                if shape != tuple(tensor.shape):
                    raise CorruptionError(f"'{file}': {name} has shape {shape}, the config implies {tuple(tensor.shape)}")
            own = dict(model.state_dict(keep_vars=True))
            with torch.no_grad():
                for name in wanted:
                    own[name].copy_(handle.get_tensor(name))
    except SafetensorError as error:
        raise CorruptionError(f"'{file}' is damaged: {error}") from error
