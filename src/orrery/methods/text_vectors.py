"""A trained encoder as a function from texts to vectors: what searching by meaning asks for (:mod:`orrery.catalogue.encoded`).

N texts, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orrery.core.errors import ConfigError
from orrery.data.tokenizer_files import load_tokenizer
from orrery.models.convert import with_head
from orrery.models.encode import encode
from orrery.models.encoder import Encoder
from orrery.models.folders import open_folder, weights_hash

if TYPE_CHECKING:
    import numpy as np

MOST_TOKENS = 512  # of one text; what stands behind is not read


class TextVectors:
    """`TextVectors(folder)(texts)`: the mean of an encoder's last hidden states over each text, (N,D) float32.

    Args:
        folder: of a run, or of weights that Orrery wrote; a head that they have is left out.

    Raises:
        ConfigError: its model is no encoder. StorageError: there is no model, or no tokenizer beside it.
    """

    def __init__(self, folder: str | Path) -> None:
        model, path = open_folder(folder)
        if not isinstance(model, Encoder):
            raise ConfigError(f"'{folder}' holds no encoder; `orrery pretrain` makes one")
        self.model = with_head(model, None) if model.head is not None else model
        self.tokenizer = load_tokenizer(path / "tokenizer")
        self.name = f"{model.config.architecture}-{weights_hash(path)}"
        embedding = model.config.embedding
        self.most = min(MOST_TOKENS, embedding.max_positions) if embedding.positions != "none" else MOST_TOKENS

    def __call__(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        rows = [[self.tokenizer.doc_id, *ids.tolist()][: self.most] for ids in self.tokenizer.encode_batch(list(texts))]
        return encode(self.model, rows).float().numpy()
