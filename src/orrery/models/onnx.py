"""Encoders as ONNX files, for runtimes without Python: `to_onnx(model, "model.onnx")`. Needs the extra `onnx`.

The graph takes `tokens` (B,T) int64, and `types` (B,T) int64 where the model has token types, and gives what the head says, or
the hidden states (B,T,D) without a head. B and T are free; every row is one whole document, without padding (group documents
by length, as `orrery.models.encode` does). Decoding a CRF, and every `predict`, stay outside. An encoder-decoder with a head is
written whole; where its head reads the state at a text's end, every row holds the token `config.stop`.

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
from typing import Any, cast

import torch
from torch import Tensor, nn

from orrery.core.errors import ConfigError
from orrery.models.encoder import Encoder
from orrery.models.encoder_decoder import PairReader
from orrery.nn.contract import Context

TOLERANCE = 1e-4  # largest difference, float32
TRACED, TRIED = (2, 7), ((1, 4), (3, 13), (2, 30))


class _Graph(nn.Module):
    """The model without the checks of its input, which ask for numbers while it is traced."""

    def __init__(self, model: Encoder | PairReader) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, types: Tensor | None = None) -> Tensor:
        body = _body(self.model)
        embeds = body.embed(tokens)
        table = body.type_embed
        if types is not None and table is not None:  # the model adds type 0 to every token
            embeds = embeds + table(types) - table.weight[0]
        out = body(embeds=embeds)
        if isinstance(self.model, PairReader):
            return self._answered(self.model, tokens, out.hidden)
        return out.hidden if out.logits is None else out.logits

    def _answered(self, model: PairReader, tokens: Tensor, memory: Tensor) -> Tensor:
        """What the head says of the states of the decoder, which reads the text a token late."""
        late = torch.cat([torch.full_like(tokens[:, :1], model.config.start), tokens[:, :-1]], 1)
        hidden = model.decoder(embeds=model.decoder.embed(late), ctx=Context(memory=memory)).hidden
        if model.reads_end:
            ends = torch.where(tokens.eq(cast(int, model.config.stop)), torch.arange(tokens.shape[1]), -1).amax(1)
            hidden = hidden[torch.arange(len(tokens)), ends][:, None]
        return cast(Tensor, model.head(hidden))


def _body(model: Encoder | PairReader) -> Encoder:
    return model.encoder if isinstance(model, PairReader) else model


def to_onnx(model: nn.Module, path: str | Path) -> Path:
    """Write an encoder, or an encoder-decoder that answers with a head, as ONNX.

    Args:
        model: in float32; on return it is in the mode it was in.
        path: of the file, replaced if there is one.

    Returns:
        The path.

    Raises:
        ConfigError: another model, a missing package, a graph that cannot be traced, or one that answers otherwise.
    """
    if not isinstance(model, Encoder | PairReader):
        raise ConfigError(f"{type(model).__name__} is no encoder; ONNX export takes encoders, and encoder-decoders with a head")
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'orrery-lm[onnx]'") from error
    name = model.config.architecture
    body = _body(model)
    if body.embed_width != body.config.width and body.type_embed is not None and body.embed_map is None:
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


def _inputs(model: Encoder | PairReader, batch: int, length: int) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(length)
    tokens = torch.randint(0, model.vocab_size, (batch, length), generator=draw)
    if isinstance(model, PairReader) and model.reads_end:
        tokens[0, length // 2], tokens[1:, -1] = cast(int, model.config.stop), cast(int, model.config.stop)
    table = _body(model).type_embed
    if table is None:
        return (tokens,)
    return tokens, torch.randint(0, table.num_embeddings, (batch, length), generator=draw)


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
    out = graph.model(inputs[0], types=inputs[1] if len(inputs) > 1 else None)
    expected = out.hidden if out.logits is None else out.logits
    if found.shape != expected.shape or float((found - expected).abs().max()) > TOLERANCE:
        gap = (
            "another shape"
            if found.shape != expected.shape
            else f"a difference of {float((found - expected).abs().max()):.2g}"
        )
        raise ConfigError(f"'{name}' cannot be written as ONNX: at shape {shape} its graph gives {gap}")
