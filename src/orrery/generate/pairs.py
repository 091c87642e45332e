"""Generation by encoder-decoders: the source is read once, the target grows from `config.start` to `config.stop`.

Greedy and sampled targets grow row by row through the decoder's state. Beam search keeps the K best unfinished targets of
every source and the K best finished ones,

    score(y) = sum_t log p(y_t | y_<t, source) / |y|^a        (a: length penalty; GNMT 1609.08144 divides by ((5 + |y|) / 6)^a)

and ends when no unfinished target can still be better than the worst finished one, judged at its present length.

B sources, S source length, K beams, V vocabulary, n new tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from orrery.core.errors import ConfigError
from orrery.generate.sampling import Sampling
from orrery.models.encoder_decoder import EncoderDecoder
from orrery.nn.contract import Context
from orrery.nn.state import reserve

Step = Callable[[Tensor], Tensor]


def target_steps(
    model: EncoderDecoder, source: Tensor, segments: Tensor | None, count: int, sampling: Sampling,
    draws: torch.Generator | None, use_state: bool = True,
) -> Iterator[Tensor]:
    """Yield at most `count` times the next target token (B,) of every source; a row that has stopped repeats its stop token.

    Args:
        source: (B,S) ids; segments: (B,S), -1 at padding, or None.
        use_state: False reads the whole target again for every token (a check of the state).

    Raises:
        ConfigError: when the scores are not numbers.
    """
    stop, batch = model.config.stop, len(source)
    seen = torch.full((batch, count + 1), model.config.start, dtype=torch.int64, device=source.device)
    done = torch.zeros(batch, dtype=torch.bool, device=source.device)
    step = _steps(model, source, segments, count) if use_state else _again(model, source, segments)
    for number in range(count):
        with torch.inference_mode():
            scores = step(seen[:, : number + 1])
        if math.isnan(float(scores.max())):
            raise ConfigError(f"the model's scores are not numbers (NaN) at new token {number}; its weights are damaged or diverged")
        new = sampling.choose(scores, seen[:, : number + 1], None, draws)
        if stop is not None:
            new = torch.where(done, stop, new)
            done = done | (new == stop)
        seen[:, number + 1] = new
        yield new
        if bool(done.all()):
            return


def _steps(model: EncoderDecoder, source: Tensor, segments: Tensor | None, count: int) -> Step:
    """Scores (B,V) after targets (B,n), of which all but the last token have been read by the calls before."""
    state: Any = None
    step: Any = None

    def read(target: Tensor) -> Tensor:
        nonlocal state, step
        if state is None:
            out = model.decode(target, model.encode(source, segments))
            state = out.state
            return model.head(out.hidden[:, -1])
        if step is None:
            step = model.stepper(state, count + 1) or _one_by_one(model, reserve(state, count + 1))
        return step(target[:, -1])

    return read


def _one_by_one(model: EncoderDecoder, state: Any) -> Callable[[Tensor], Tensor]:
    """Scores (B,V) after one more token (B,), by calls of the decoder; `state` is ours to overwrite."""

    def step(tokens: Tensor) -> Tensor:
        nonlocal state
        out = model.decode(tokens[:, None], None, state=state, ctx=Context(donate=True))
        state = out.state
        return model.head(out.hidden[:, -1])

    return step


def _again(model: EncoderDecoder, source: Tensor, segments: Tensor | None) -> Step:
    return lambda target: model.head(model(source, target, source_segments=segments).hidden[:, -1])


@torch.inference_mode()
def beam_search(model: EncoderDecoder, source: Tensor, segments: Tensor | None, count: int, beams: int, length_penalty: float = 1.0) -> Tensor:
    """The best target of every source found by beam search (B,n), without the start token, filled up behind its stop token.

    Args:
        source: (B,S) ids; segments: (B,S), -1 at padding, or None.
        count: at most so many tokens. beams: K. length_penalty: a; above 0 it favours longer targets.

    Raises:
        ConfigError: for fewer than one beam.
    """
    if beams < 1:
        raise ConfigError(f"beams must be 1 or more, not {beams}")
    batch, stop, device = len(source), model.config.stop, source.device
    out = model.decode(torch.full((batch, 1), model.config.start, device=device), model.encode(source, segments))
    rows = torch.arange(batch, device=device).repeat_interleave(beams)
    state, scores = out.state.select(rows), model.head(out.hidden[:, -1])[rows]
    totals = torch.full((batch, beams), -math.inf, device=device)
    totals[:, 0] = 0.0  # all beams of a source are equal at first; one of them speaks for all
    texts = torch.zeros(batch, beams, 0, dtype=torch.int64, device=device)
    finished: list[list[tuple[float, Tensor]]] = [[] for _ in range(batch)]
    open_rows = [True] * batch
    for length in range(1, count + 1):
        logp = torch.log_softmax(scores.float(), -1).view(batch, beams, -1)
        vocabulary = logp.shape[-1]
        best, index = (totals[..., None] + logp).flatten(1).topk(min(2 * beams, beams * vocabulary), 1)
        origin, token = index // vocabulary, index % vocabulary
        ends = token == stop if stop is not None else torch.zeros_like(token, dtype=torch.bool)
        for row in range(batch):
            for rank in range(min(beams, best.shape[1])) if open_rows[row] else ():
                if bool(ends[row, rank]) and math.isfinite(float(best[row, rank])):
                    text = torch.cat([texts[row, origin[row, rank]], token[row, rank : rank + 1]])
                    _keep(finished[row], float(best[row, rank]) / length**length_penalty, text, beams)
        live = best.masked_fill(ends, -math.inf)
        totals, chosen = live.topk(beams, 1)
        origin, token = origin.gather(1, chosen), token.gather(1, chosen)
        texts = torch.cat([texts.gather(1, origin[..., None].expand(-1, -1, texts.shape[2])), token[..., None]], 2)
        for row in range(batch):
            full = len(finished[row]) >= beams
            open_rows[row] = open_rows[row] and not (full and finished[row][-1][0] >= float(totals[row, 0]) / length**length_penalty)
        if not any(open_rows) or length == count:
            break
        state = state.select((origin + torch.arange(batch, device=device)[:, None] * beams).flatten())
        out = model.decode(token.reshape(-1, 1), None, state=state)
        state, scores = out.state, model.head(out.hidden[:, -1])
    for row in range(batch):
        for rank in range(beams) if open_rows[row] else ():
            if math.isfinite(float(totals[row, rank])):
                _keep(finished[row], float(totals[row, rank]) / texts.shape[2] ** length_penalty, texts[row, rank], beams)
    winners = [found[0][1] for found in finished]
    filled = source.new_full((batch, max(len(text) for text in winners)), 0 if stop is None else stop)
    for row, text in enumerate(winners):
        filled[row, : len(text)] = text
    return filled


def _keep(found: list[tuple[float, Tensor]], score: float, text: Tensor, most: int) -> None:
    """Put a finished target among the `most` best, best first."""
    found.append((score, text))
    found.sort(key=lambda each: -each[0])
    del found[most:]


def source_ids(texts: list[str], tokenizer: Any, stop: int | None) -> tuple[Tensor, Tensor]:
    """Ids (B,S) of texts, each closed by the stop token as targets are, padded behind, and segments (B,S)."""
    rows = [[*tokenizer.encode(text).tolist(), *([] if stop is None else [stop])] for text in texts]
    if not rows or not all(rows):
        raise ConfigError("a source text is empty, or no source was given")
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    segments = torch.full_like(tokens, -1)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
        segments[index, : len(row)] = 0
    return tokens, segments
