"""Encoders as ONNX files, for runtimes without Python: `to_onnx(model, "model.onnx")`. Needs the extra `onnx`.

The graph takes `tokens` (B,T) int64, and `types` (B,T) int64 where the model has token types, and gives what the head says, or
the hidden states (B,T,D) without a head. B and T are free; every row is one whole document, without padding (group documents
by length, as `orrery.models.encode` does). Decoding a CRF, and every `predict`, stay outside.

A graph is written only after it has answered as the model does, at other shapes than the one it was traced at. What cannot be
traced with free shapes (compiled loops of recurrent mixers, tables made for a length) is refused with the reason.

B batch, T time, D width.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orrery.core.errors import ConfigError
from orrery.models.encoder import Encoder

TOLERANCE = 1e-4  # largest difference, float32
TRACED, TRIED = (2, 7), ((1, 4), (3, 13), (2, 30))


class _Graph(nn.Module):
    """The encoder without the checks of its input, which ask for numbers while it is traced."""

    def __init__(self, model: Encoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, types: Tensor | None = None) -> Tensor:
        embeds = self.model.embed(tokens)
        table = self.model.type_embed
        if types is not None and table is not None:  # the model adds type 0 to every token
            embeds = embeds + table(types) - table.weight[0]
        out = self.model(embeds=embeds)
        return out.hidden if out.logits is None else out.logits


def to_onnx(model: nn.Module, path: str | Path) -> Path:
    """Write an encoder, with its head, as ONNX.

    Args:
        model: an encoder in float32; on return it is in the mode it was in.
        path: of the file, replaced if there is one.

    Returns:
        The path.

    Raises:
        ConfigError: another model, a missing package, a graph that cannot be traced, or one that answers otherwise.
    """
    if not isinstance(model, Encoder):
        raise ConfigError(f"{type(model).__name__} is no encoder; ONNX export takes encoders and their heads")
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'orrery-lm[onnx]'") from error
    name = model.config.architecture
    if model.embed_width != model.config.width and model.type_embed is not None and model.embed_map is None:
        raise ConfigError(f"'{name}' has token types of another width than its embedding")
    training = model.training
    graph = _Graph(model).eval()
    target = Path(path)
    try:
        with torch.no_grad(), tempfile.TemporaryDirectory(dir=_folder(target)) as scratch:
            draft = Path(scratch) / "model.onnx"
            _trace(graph, _inputs(model, *TRACED), draft, name)
            session = onnxruntime.InferenceSession(str(draft), providers=["CPUExecutionProvider"])
            for shape in TRIED:
                _compare(graph, session, _inputs(model, *shape), name)
            os.replace(draft, target)
    finally:
        model.train(training)
    return target


def _folder(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.parent


def _inputs(model: Encoder, batch: int, length: int) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(length)
    tokens = torch.randint(0, model.vocab_size, (batch, length), generator=draw)
    if model.type_embed is None:
        return (tokens,)
    return tokens, torch.randint(0, model.type_embed.num_embeddings, (batch, length), generator=draw)


def _trace(graph: _Graph, inputs: tuple[Tensor, ...], draft: Path, name: str) -> None:
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    names = ["tokens", "types"][: len(inputs)]
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made: Any = torch.onnx.export(
                graph,
                inputs,
                dynamo=True,
                dynamic_shapes=tuple(free for _ in inputs),
                input_names=names,
                output_names=["output"],
                verbose=False,
            )
            made.save(str(draft))
    except Exception as error:  # the exporter's errors are of many classes; the cause is what counts
        raise ConfigError(f"'{name}' cannot be written as ONNX: {_reason(error)}") from error
    finally:
        logging.disable(before)


def _reason(error: BaseException) -> str:
    """The innermost cause, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}"


def _compare(graph: _Graph, session: Any, inputs: tuple[Tensor, ...], name: str) -> None:
    given = {held.name: value.numpy() for held, value in zip(session.get_inputs(), inputs, strict=True)}
    shape = tuple(inputs[0].shape)
    try:
        found = torch.from_numpy(session.run(None, given)[0])
    except RuntimeError as error:  # onnxruntime's Fail derives from it
        raise ConfigError(
            f"'{name}' cannot be written as ONNX: its graph does not run at shape {shape}: {_reason(error)}"
        ) from error
    expected = graph(*inputs)
    if found.shape != expected.shape or float((found - expected).abs().max()) > TOLERANCE:
        gap = (
            "another shape"
            if found.shape != expected.shape
            else f"a difference of {float((found - expected).abs().max()):.2g}"
        )
        raise ConfigError(f"'{name}' cannot be written as ONNX: at shape {shape} its graph gives {gap}")
