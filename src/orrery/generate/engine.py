"""`generate` and `stream`: continue prompts with any model that obeys the frame's interface.

The prompt is read once (prefill); every further token is one step through the state. Prompts of different lengths are
one batch: they are padded on the right, padding is invisible to every part, and each row goes on from its own last
token. Caches are set aside once and overwritten in place (`Context.donate`): nobody else holds them.

B batch, T prompt length, N new tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from orrery.core.errors import ConfigError
from orrery.core.seeds import generator as seeded
from orrery.generate.pairs import beam_search, source_ids, target_steps
from orrery.generate.policy import StatePolicy, create_policy
from orrery.generate.policy_reading import policy_reader
from orrery.generate.sampling import Sampling, holds_nan
from orrery.models.decoder import DecoderLM
from orrery.models.diagnose import find_broken
from orrery.models.encoder import Encoder
from orrery.models.encoder_decoder import EncoderDecoder, PairReader
from orrery.nn.contract import Context
from orrery.nn.state import reserve

PADDING = -1
Read = Callable[[Tensor, Tensor | None], Tensor]


def generate(
    model: nn.Module,
    prompt: Any,
    max_new_tokens: int = 64,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    stop: str | Sequence[str] = (),
    seed: int | None = None,
    tokenizer: Any = None,
    on_text: Callable[[str], None] | None = None,
    use_state: bool = True,
    beams: int = 1,
    length_penalty: float = 1.0,
    policy: StatePolicy | str | None = None,
    policy_window: int = 64,
) -> Any:
    """Continue a prompt; with an encoder-decoder, answer a source.

    Args:
        model: anything `create_model` or `load` returned, or a wrapped module.
        prompt: text -> text; a list of texts -> a list of texts; ids (B,T) int64 -> ids (B,T+n).
        max_new_tokens: at most so many; text ends earlier at a stop string or at the end of the document.
        temperature, top_k, top_p, min_p, repetition_penalty: see :class:`Sampling`.
        stop: strings that end a row; they are not part of the result.
        seed: of the draws; None: from torch's global state.
        tokenizer: for text; by default the one saved beside the model.
        on_text: called with each new piece of text (a single text prompt only).
        use_state: False reads everything again for every token; same tokens, only slower (a check of the state).
        beams: of an encoder-decoder: above 1 the best target of a beam search of that width, which draws nothing; length_penalty:
            the power of its length that a target's score is divided by.
        policy: of a linear recurrence: what is done to its state after every `policy_window` tokens, counted from the prompt's
            first, such as "slide:512" (:mod:`orrery.generate.policy`).

    Returns:
        As the prompt: continuations only for text; prompt and continuation for ids. Of an encoder-decoder the targets alone, for
        ids without the start token and filled up with the stop token.

    Raises:
        ConfigError: for an impossible setting, or text without a tokenizer.
    """
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty)
    draws = None if seed is None else seeded(seed, "generate")
    if isinstance(model, Encoder):
        raise ConfigError(f"'{model.config.architecture}' is an encoder: it reads whole texts and predicts no next token")
    if isinstance(model, PairReader):
        raise ConfigError(f"'{model.config.architecture}' with a head answers about texts and writes none; generate with one that has no head")
    policy = create_policy(policy) if isinstance(policy, str) else policy
    if policy is not None and (isinstance(model, EncoderDecoder) or not use_state):
        raise ConfigError("a policy changes the state that a decoder carries; it needs a decoder, and use_state")
    acting = None if policy is None else (policy, policy_window)
    if isinstance(model, EncoderDecoder):
        if beams < 1:
            raise ConfigError(f"beams must be 1 or more, not {beams}")
        if beams > 1 and (temperature not in (0.0, 1.0) or top_k or top_p or min_p or repetition_penalty != 1.0):
            raise ConfigError("beam search draws nothing: leave out temperature, top_k, top_p, min_p and repetition_penalty, or beams")
        search = (beams, length_penalty)
        return _answer(model, prompt, max_new_tokens, sampling, draws, tokenizer, search, on_text, use_state)
    if beams != 1:
        raise ConfigError("beams are for encoder-decoders; a decoder's continuation is greedy (temperature=0) or drawn")
    if isinstance(prompt, Tensor):
        if prompt.dim() != 2 or prompt.dtype != torch.int64 or prompt.numel() == 0:
            raise ConfigError(f"a prompt of ids must be int64 of shape (batch, time), not {prompt.dtype} of {tuple(prompt.shape)}")
        new = list(decode_steps(model, prompt, None, max_new_tokens, sampling, draws, use_state, acting, max_new_tokens))
        return torch.cat([prompt, torch.stack(new, 1)], 1) if new else prompt.clone()
    tokenizer = tokenizer or saved_tokenizer(model)
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    tokens, segments = pad_prompts(texts, tokenizer)
    steps = decode_steps(model, tokens, segments, max_new_tokens, sampling, draws, use_state, acting)
    found = _written(steps, [TextRow(tokenizer, stops) for _ in texts], on_text)
    return found[0] if isinstance(prompt, str) else found


def _written(steps: Iterator[Tensor], rows: list[TextRow], on_text: Callable[[str], None] | None) -> list[str]:
    """The texts of rows of which every step (B,) adds a token, until all have ended."""
    for step in steps:
        for row, token in zip(rows, step.tolist(), strict=True):
            piece = row.add(token)
            if on_text is not None and len(rows) == 1 and piece:
                on_text(piece)
        if all(row.done for row in rows):
            break
    for row in rows:
        piece = row.finish()
        if on_text is not None and len(rows) == 1 and piece:
            on_text(piece)
    return [row.text for row in rows]


def _answer(
    model: EncoderDecoder, prompt: Any, count: int, sampling: Sampling, draws: torch.Generator | None, tokenizer: Any,
    search: tuple[int, float], on_text: Callable[[str], None] | None, use_state: bool,
) -> Any:
    """Targets of an encoder-decoder for sources: text -> text, texts -> texts, ids -> ids."""
    if count < 0:
        raise ConfigError(f"max_new_tokens must be 0 or more, not {count}")
    ids, segments = prompt if isinstance(prompt, Tensor) else None, None
    if ids is None:
        tokenizer = tokenizer or saved_tokenizer(model)
        ids, segments = source_ids([prompt] if isinstance(prompt, str) else list(prompt), tokenizer, model.config.stop)
    was_training = model.training
    model.eval()
    try:
        if search[0] > 1:
            new = list(beam_search(model, ids, segments, count, *search).unbind(1)) if count else []
        else:
            new = list(target_steps(model, ids, segments, count, sampling, draws, use_state))
    finally:
        model.train(was_training)
    found = torch.stack(new, 1) if new else ids[:, :0]
    if isinstance(prompt, Tensor):
        return found
    stop = model.config.stop
    texts = [tokenizer.decode(row[: row.index(stop)] if stop in row else row) for row in found.tolist()]
    if on_text is not None and len(texts) == 1:
        on_text(texts[0])
    return texts[0] if isinstance(prompt, str) else texts


def stream(model: nn.Module, prompt: str, max_new_tokens: int = 64, *, sampling: Sampling | None = None, stop: Sequence[str] = (),
           seed: int | None = None, tokenizer: Any = None) -> Iterator[str]:
    """Pieces of text as they come; joined they are what :func:`generate` returns for the same settings."""
    tokenizer = tokenizer or saved_tokenizer(model)
    tokens, segments = pad_prompts([prompt], tokenizer)
    row = TextRow(tokenizer, tuple(stop))
    draws = None if seed is None else seeded(seed, "generate")
    for step in decode_steps(model, tokens, segments, max_new_tokens, sampling or Sampling(), draws, True):
        if piece := row.add(int(step[0])):
            yield piece
        if row.done:
            break
    if piece := row.finish():
        yield piece


def decode_steps(
    model: nn.Module,
    tokens: Tensor,
    segments: Tensor | None,
    count: int,
    sampling: Sampling,
    draws: torch.Generator | None,
    use_state: bool,
    policy: tuple[StatePolicy, int] | None = None,
    ahead: int = 1,
) -> Iterator[Tensor]:
    """Yield `count` times the next token (B,) of every row.

    Args:
        tokens: (B,T); segments: (B,T), 0 at tokens and -1 at trailing padding, or None.
        policy: with the tokens of its window.
        ahead: how many greedy tokens may be found at once before they are handed on, by a caller who wants them all.
    """
    if count < 0:
        raise ConfigError(f"max_new_tokens must be 0 or more, not {count}")
    was_training = model.training
    model.eval()
    read: Read = _Continuing(model, tokens.shape[1] + count) if use_state else _from_the_start(model)
    if policy is not None:
        read = policy_reader(model, *policy)
    try:
        yield from _steps(model, read, tokens, segments, count, sampling, draws, ahead)
    finally:
        if isinstance(read, _Continuing):
            read.close()
        if was_training:
            model.train()


@torch.inference_mode()
def _read(model: Any, tokens: Tensor, segments: Tensor | None, state: Any, ctx: Context | None) -> tuple[Tensor, Any]:
    """Scores (B,V) after the last valid token of each row, and the state."""
    if segments is None and ctx is None and type(model) is DecoderLM:
        ctx = Context(last=True)
    out = model(tokens, state=state, ctx=ctx, segments=segments) if ctx is not None or segments is not None else model(tokens, state=state)
    if segments is None:
        hidden = out.hidden[:, -1]
    else:
        last = (segments >= 0).long().cumsum(1).argmax(1)  # first place where the count is full: padding may stand before
        hidden = out.hidden[torch.arange(len(tokens), device=tokens.device), last]
    head = getattr(model, "head", None)
    return (head(hidden) if head is not None else hidden), out.state


def _steps(
    model: nn.Module,
    read: Read,
    tokens: Tensor,
    segments: Tensor | None,
    count: int,
    sampling: Sampling,
    draws: torch.Generator | None,
    ahead: int,
) -> Iterator[Tensor]:
    if segments is not None and bool((segments >= 0).all()):
        segments = None
    batch, prompt = tokens.shape
    seen = torch.cat([tokens, tokens.new_zeros(batch, count)], 1)
    marks = None if segments is None else torch.cat([segments.clamp(max=0), tokens.new_zeros(batch, count)], 1)
    ids = seen.numpy() if seen.device.type == "cpu" else None
    quick = read.best if isinstance(read, _Continuing) and sampling.greedy else None
    found: list[Tensor] = []  # tokens that have not been handed on
    new: Tensor | None = None
    for step in range(count):
        known = prompt + step
        if quick is not None and new is not None and not found:
            found = quick(new, min(ahead, count - step))
        if found:
            new = found.pop(0)
            broken, scores = bool(new.numpy().min() < 0), None
        else:
            scores = read(seen[:, :known], None if marks is None else marks[:, :known])
            broken = holds_nan(scores)
        if broken or scores is not None:
            now, valid = seen[:, :known], None if marks is None else marks[:, :known] >= 0
            if broken or scores is None:
                raise ConfigError(_complaint(model, step, now, valid))
            new = sampling.choose(scores, now, valid, draws)
        assert new is not None
        if ids is None:
            seen[:, known] = new
        else:
            ids[:, known] = new.numpy()  # the same memory; a tenth of the time
        yield new


def _from_the_start(model: nn.Module) -> Read:
    """Scores (B,V) after tokens (B,S) and segments, everything read anew."""
    return lambda tokens, segments: _read(model, tokens, segments, None, None)[0]


class _Continuing:
    """Scores (B,V) after tokens (B,S) and segments, of which all but the last have been read by the calls before."""

    def __init__(self, model: nn.Module, capacity: int) -> None:
        self.model, self.capacity = model, capacity
        self.state: Any = None
        self.stepper: Any = None
        self.step: Callable[[Tensor], Tensor] | None = None

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, segments: Tensor | None) -> Tensor:
        if self.state is None:
            scores, self.state = _read(self.model, tokens, segments, None, None)
            return scores
        return self._step()(tokens[:, -1])

    @torch.inference_mode()
    def best(self, tokens: Tensor, most: int) -> list[Tensor]:
        """At most so many times the first best tokens (B,), the first after one more token (B,) of every row, each after the one
        before; below 0 where a score is not a number. Nothing, and nothing read, where they are not found along the way."""
        self._step()
        return [] if self.stepper is None else list(self.stepper.write(tokens, most))

    def close(self) -> None:
        """Nothing more is read; a prepared step is given back."""
        if self.stepper is not None:
            self.stepper.close()
        self.stepper = self.step = None

    def _step(self) -> Callable[[Tensor], Tensor]:
        if self.step is None:
            self.stepper = self.model.stepper(self.state, self.capacity) if hasattr(self.model, "stepper") else None  # type: ignore[operator]
            self.step = self.stepper or _one_by_one(self.model, reserve(self.state, self.capacity))
        return self.step


def _one_by_one(model: nn.Module, state: Any) -> Callable[[Tensor], Tensor]:
    """Scores (B,V) after one more token (B,), by calls of the model; `state` is ours to overwrite."""
    donate = Context(donate=True)

    def step(tokens: Tensor) -> Tensor:
        nonlocal state
        scores, state = _read(model, tokens[:, None], None, state, donate)
        return scores

    return step


def _complaint(model: nn.Module, step: int, seen: Tensor, valid: Tensor | None) -> str:
    """What to say about scores that are not numbers; everything is read once more to see where it begins."""
    marks = None if valid is None else torch.where(valid, 0, PADDING)
    begun = find_broken(model, lambda: _read(model, seen, marks, None, None))
    where = f", first in {begun}" if begun else ""
    return f"the model's scores are not numbers (NaN) at new token {step}{where}; its weights are damaged or diverged"


def pad_prompts(texts: Sequence[str], tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Ids (B,T) padded on the right and segments (B,T). Each prompt begins with the document id, as documents do."""
    rows = [[tokenizer.doc_id, *tokenizer.encode(text).tolist()] for text in texts]
    if not rows:
        raise ConfigError("no prompt was given")
    longest = max(len(row) for row in rows)
    tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
    segments = torch.full((len(rows), longest), PADDING, dtype=torch.int64)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = torch.tensor(row)
        segments[index, : len(row)] = 0
    return tokens, segments


class TextRow:
    """Turns one row's tokens into text: whole characters only, up to a stop string or the end of the document."""

    def __init__(self, tokenizer: Any, stops: tuple[str, ...]) -> None:
        self.tokenizer, self.stops = tokenizer, tuple(s for s in stops if s)
        self.ids: list[int] = []
        self.text, self.done = "", False
        self._shown = 0

    def add(self, token: int) -> str:
        """The text that has become certain with this token."""
        if self.done:
            return ""
        if token == self.tokenizer.doc_id:
            return self.finish()
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids)
        cuts = [text.find(stop) for stop in self.stops if stop in text]
        if cuts:
            self.done = True
            return self._show(text[: min(cuts)])
        return self._show(text[: len(text) - self._open(text)])

    def finish(self) -> str:
        """No more tokens come: everything is certain."""
        if self.done:
            return ""
        self.done = True
        return self._show(self.tokenizer.decode(self.ids))

    def _open(self, text: str) -> int:
        """Trailing characters that the next token may still change: an unfinished character, a begun stop string."""
        broken = len(text) - len(text.rstrip("\ufffd"))
        held = max((n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        return max(broken, held)

    def _show(self, text: str) -> str:
        piece, self._shown, self.text = text[self._shown :], len(text), text
        return piece


def saved_tokenizer(model: nn.Module) -> Any:
    """The tokenizer that was saved beside a loaded model."""
    folder = cast(Path | None, getattr(model, "folder", None))
    if folder is None or not (folder / "tokenizer").is_dir():
        raise ConfigError("this model was loaded without a tokenizer; pass tokenizer=..., or ids (B,T) in place of text")
    from orrery.data.tokenizer_files import load_tokenizer

    return load_tokenizer(folder / "tokenizer")
