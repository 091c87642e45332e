"""`distil-start`: a shallower encoder that begins as some of a teacher's layers.

Paper: DistilBERT (arXiv 1910.01108, section 3): the student takes one layer of two from the teacher. Of twelve layers the authors
    take 0, 2, 4, 7, 9, 11; CamemBERT's and RoBERTa's students are made alike.

    student = distil_start(teacher);   student = distil_start(teacher, layers=(0, 3, 6, 9), head="classification", labels=3)

A student of BERT is a `distilbert`, which has no token types: the vector of type 0, which every plain text has, goes into the
positions, so that the student's embedding of a plain text is the teacher's. A student of anything else stays what it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from orrery.core.errors import ConfigError
from orrery.core.registry import register
from orrery.models.config import EncoderConfig
from orrery.models.convert import with_head
from orrery.models.encoder import Encoder


def distil_start(
    teacher: Encoder, layers: Sequence[int] | None = None, *, head: str | dict[str, Any] | None = None, **settings: Any
) -> Encoder:
    """An encoder with some of the teacher's layers, all weights copied; the teacher is left as it is.

    Args:
        teacher: an encoder.
        layers: numbers of the layers that are taken, ascending; None: half of them, the first and the last among them.
        head: another head, freshly drawn, with its `settings`; None: the teacher's own, weights and all.

    Raises:
        ConfigError: for a teacher that is no encoder, or layers that it does not have.
    """
    if not isinstance(teacher, Encoder):
        raise ConfigError(f"{type(teacher).__name__} is no encoder whose layers a student could take")
    own, depth = teacher.config.to_dict(), teacher.config.depth
    taken = spread(depth, max(1, depth // 2)) if layers is None else list(layers)
    if not taken or taken != sorted(set(taken)) or taken[0] < 0 or taken[-1] >= depth:
        raise ConfigError(f"layers {taken} must be different numbers from 0 to {depth - 1}, ascending")
    own["layout"] = [own["layout"][layer] for layer in taken]
    typed = own["architecture"].partition("-")[0] == "bert"
    if typed:
        own["architecture"] = "distilbert"
        own["embedding"]["types"] = 0
    student = Encoder(EncoderConfig.from_dict(own)).to(next(teacher.parameters()).dtype)
    _copy(teacher, student, taken)
    student.train(teacher.training)
    return student if head is None else cast(Encoder, with_head(student, head, **settings))


def spread(depth: int, count: int) -> list[int]:
    """`count` of `depth` layers, evenly, with the first and the last: 6 of 12 are 0, 2, 4, 7, 9, 11."""
    return [round(k * (depth - 1) / max(1, count - 1)) for k in range(count)]


@torch.no_grad()
def _copy(teacher: Encoder, student: Encoder, taken: list[int]) -> None:
    theirs = {**dict(teacher.named_parameters()), **dict(teacher.named_buffers())}
    for name, tensor in (*student.named_parameters(), *student.named_buffers()):
        parts = name.split(".")
        if parts[0] == "blocks":
            name = ".".join(["blocks", str(taken[int(parts[1])]), *parts[2:]])
        if name not in theirs:
            raise ConfigError(f"the student needs {name}, which the teacher does not have; let layer 0 be one of the layers taken")
        tensor.copy_(theirs[name])
    if teacher.type_embed is not None and student.type_embed is None:
        table = student.position_embed if student.position_embed is not None else student.embed
        table.weight.add_(teacher.type_embed.weight[0])


register(
    "distil-start",
    method="distil_start",
    summary="a student that begins as every second layer of its teacher",
    paper="1910.01108",
    year=2019,
    tags=("compression",),
)
