"""A fitted model in 8 bits: the same folder with integer matrices, a quarter of the size, used by the same commands.

    orrery export runs/mr --quantise runs/mr8        or quantise("runs/mr", "runs/mr8"); then orrery predict runs/mr8 ...

Matrices become integers of -127 to 127, each row with one scale, its greatest entry / 127 (post-training, no data needed);
vectors stay in float32. Only models that can be kept so (config field `bits`): pnlp-mixer. The setting `bits=8` of such a
model does the same to every file it is saved in, and `orrery finetune` then judges the rounded weights.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from orrery.core.errors import ConfigError
from orrery.core.files import write_json, write_text
from orrery.methods.fitted import TASK, load_fitted
from orrery.models.storage import WEIGHTS, describe, from_description, save

CARD = "MODEL_CARD.md"


def quantise(source: str | Path, out: str | Path) -> dict[str, Any]:
    """Write the fitted model of `source` to the folder `out` in 8 bits.

    Returns:
        "bytes" and "before": sizes of the weights' files.

    Raises:
        ConfigError: for a model that cannot be kept in 8 bits, or an `out` that would overwrite the source or something else.
        OrreryError: for a folder that holds no fitted model.
    """
    fitted = load_fitted(source)
    place = Path(out)
    if place.resolve() == Path(source).resolve():
        raise ConfigError(f"'{out}' is the model itself, whose weights would be lost; name another folder")
    if place.exists() and not (place / TASK).is_file() and (not place.is_dir() or any(place.iterdir())):
        raise ConfigError(f"'{out}' holds something else than a fine-tuned model; name a new folder")
    model: Any = fitted.model
    record = describe(model)
    if "bits" not in record["config"]:
        raise ConfigError(f"{record['name']} cannot be kept in 8 bits; pnlp-mixer can")
    made = from_description({**record, "config": {**record["config"], "bits": 8}}, where=str(source))
    made.load_state_dict(model.state_dict())
    with tempfile.TemporaryDirectory() as scratch:
        fitted.tokenizer.save(scratch)
        files = {f"tokenizer/{file.name}": file.read_bytes() for file in sorted(Path(scratch).iterdir())}
    save(made, Path(out) / "weights", files)
    if fitted.words is not None:
        fitted.words.save(Path(out))
    write_json(Path(out) / TASK, fitted.record())
    card = Path(source) / CARD
    if card.is_file():
        head, _, rest = card.read_text(encoding="utf-8").partition("\n\n")
        said = "**Matrices in 8 bits**, rounded after training; figures below are those of the weights before."
        write_text(place / CARD, f"{head}\n\n{said}\n\n{rest}")
    sizes = [(Path(folder) / "weights" / WEIGHTS).stat().st_size for folder in (source, out)]
    return {"before": sizes[0], "bytes": sizes[1]}
