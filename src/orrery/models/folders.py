"""A model from a folder of whatever kind: weights of ours, a run or a fine-tuned model that holds such, or transformers'."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from orrery.core.config import config_hash
from orrery.core.errors import StorageError
from orrery.core.files import read_json, sha256_file
from orrery.models.exchange import from_transformers
from orrery.models.storage import CONFIG, WEIGHTS, load

_FOREIGN = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


def find_weights(folder: str | Path) -> Path:
    """The folder that holds the weights: this one, or its `weights/`.

    Raises:
        StorageError: there are none.
    """
    folder = Path(folder).expanduser()
    for path in (folder, folder / "weights"):
        if (path / "manifest.json").is_file() and (path / CONFIG).is_file():
            return path
    if (folder / CONFIG).is_file() and "model_type" in read_json(folder / CONFIG):
        return folder
    what = "holds no model: neither weights of ours nor of transformers" if folder.is_dir() else "is no folder"
    raise StorageError(f"'{folder}' {what}")


def open_folder(folder: str | Path) -> tuple[nn.Module, Path]:
    """A model, and the folder that its files lie in.

    Raises:
        StorageError: there is none. CorruptionError: a file is damaged.
    """
    path = find_weights(folder)
    return (load(path) if (path / "manifest.json").is_file() else from_transformers(str(path))), path


def weights_hash(folder: str | Path) -> str:
    """Twelve hex digits of the configuration and the weights in a folder, whatever it is called and lies beside.

    Raises:
        StorageError: there is no model.
    """
    path = find_weights(folder)
    files = [file for file in (path / CONFIG, *(path / name for name in {WEIGHTS, *_FOREIGN})) if file.is_file()]
    files += sorted(path.glob("model-*-of-*.safetensors"))
    return config_hash(sorted((file.name, sha256_file(file)) for file in files))
