"""A bag of words beside a network: a linear model on words and word pairs, whose answers are mixed with the network's.

    classes   log p = t ((1 - s) log p_network + s log p_words), normalised     several labels   the same of log-odds
    numbers   y = (1 - s) y_network + s y_words

The linear model is that of :mod:`orrery.methods.baselines`, fitted on the training rows. Share s (0, .05 .. 1) and sharpness t
(.5 to 2) are those of least log loss, or squared error, on the validation rows, which also chose the network's epoch: 0 leaves
the network alone, 1 the words. A small network trained on a few thousand sentences and a linear model err on different rows
(wide and deep, 1606.07792; there both are trained together, here each to its own optimum).

    FOLDER/words/words.json            words and pairs in the order of the weights' rows; share, sharpness
    FOLDER/words/words.safetensors     idf (F), weight (F+1,C), the last row the intercept

N texts, F words and pairs, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from orrery.core.errors import CorruptionError
from orrery.core.files import atomic_directory, read_json, verify_directory, write_json
from orrery.data.examples import TaskSpec
from orrery.data.records import Row, Table
from orrery.methods.baselines import BagOfWords, Linear, linear_targets

FOLDER = "words"
SHARES = np.linspace(0, 1, 21)
SHARPNESS = (0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0)
TINY = 1e-12


@dataclass
class Words:
    """linear: the model on words. share, sharpness: s and t at the top of the file."""

    linear: Linear
    share: float = 0.5
    sharpness: float = 1.0

    def mix(self, given: dict[str, Any], rows: list[Row]) -> dict[str, Any]:
        """The network's predictions with the words' mixed in; both as :func:`orrery.evaluate.tasks.judge` takes them."""
        own = self.linear.scores(Table("rows", (), rows)).numpy()
        return _mixed(self.linear.bag.spec, given, own, self.share, self.sharpness)

    def save(self, folder: Path) -> None:
        """Write the folder `words`."""
        from safetensors.torch import save_file

        with atomic_directory(folder / FOLDER) as place:
            bag = self.linear.bag
            write_json(place / "words.json", {"words": list(bag.names), "share": self.share, "sharpness": self.sharpness})
            tensors = {"idf": torch.from_numpy(bag.weights).float(), "weight": self.linear.weight.float()}
            save_file(tensors, place / "words.safetensors")

    @classmethod
    def load(cls, folder: Path, spec: TaskSpec) -> Words:
        """Read it back.

        Raises:
            CorruptionError: a file is missing or damaged.
        """
        from safetensors.torch import load_file

        verify_directory(folder / FOLDER)
        stored = read_json(folder / FOLDER / "words.json")
        tensors = load_file(folder / FOLDER / "words.safetensors")
        try:
            names, idf, weight = stored["words"], tensors["idf"], tensors["weight"]
            share, sharpness = float(stored["share"]), float(stored["sharpness"])
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptionError(f"'{folder / FOLDER}' is damaged: {error}") from error
        classes = 1 if spec.kind == "regression" else len(spec.names)
        if idf.shape != (len(names),) or weight.shape != (max(1, len(names)) + 1, classes):
            raise CorruptionError(f"'{folder / FOLDER}' is damaged: {len(names)} words, but weights of shape {tuple(weight.shape)}")
        return cls(Linear(BagOfWords.of_words(spec, names, idf.double().numpy()), weight.double()), share, sharpness)


def fit_words(linear: Linear, given: dict[str, Any], validation: Table) -> Words:
    """The share and sharpness that are best on the validation rows.

    Args:
        linear: fitted on the training rows.
        given: the network's predictions of the validation rows.
    """
    spec = linear.bag.spec
    own, wanted = linear.scores(validation).numpy(), linear_targets(spec, validation).numpy()
    if spec.kind in ("classification", "ordinal"):  # rows whose label training lacks say nothing
        known = wanted >= 0
        own, wanted, given = own[known], wanted[known], {name: np.asarray(value)[known] for name, value in given.items()}
    sharpness = (1.0,) if spec.kind == "regression" else SHARPNESS
    tried = ((_loss(spec, _mixed(spec, given, own, float(s), t), wanted), float(s), t) for s in SHARES for t in sharpness)
    _, share, best = min(tried)
    return Words(linear, share, best)


def _mixed(spec: TaskSpec, given: dict[str, Any], own: NDArray[np.float64], s: float, t: float) -> dict[str, Any]:
    if spec.kind == "regression":
        return {"predicted": (1 - s) * given["predicted"] + s * own[:, 0]}
    shares = np.clip(given["probabilities"], TINY, 1)
    if spec.kind == "multi-label":
        odds = t * ((1 - s) * (np.log(shares) - np.log(np.clip(1 - given["probabilities"], TINY, 1))) + s * own)
        return {"probabilities": torch.from_numpy(odds).sigmoid().numpy()}
    logs = torch.from_numpy(own).log_softmax(-1)
    mixed = (t * ((1 - s) * torch.from_numpy(np.log(shares)) + s * logs)).softmax(-1)
    best = (mixed.cumsum(-1) < 0.5).sum(-1).clamp(max=mixed.shape[-1] - 1) if spec.kind == "ordinal" else mixed.argmax(-1)
    return {"probabilities": mixed.numpy(), "predicted": best.numpy()}


def _loss(spec: TaskSpec, given: dict[str, Any], wanted: NDArray[Any]) -> float:
    """Mean squared error, or nats a row."""
    if spec.kind == "regression":
        return float(np.mean((given["predicted"] - wanted[:, 0]) ** 2))
    shares = given["probabilities"]
    if spec.kind == "multi-label":
        return float(-np.mean(np.log(np.clip(np.where(wanted > 0, shares, 1 - shares), TINY, 1))))
    return float(-np.mean(np.log(np.clip(shares[np.arange(len(wanted)), wanted], TINY, 1))))
