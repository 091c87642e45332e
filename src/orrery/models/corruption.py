"""Noise for pretext tasks, as pure functions of ids and a generator: what is hidden, replaced, cut out and put together again.

    hide          BERT's: chosen tokens become the mask, a random token, or stay (1810.04805, section 3.1)
    span_noise    T5's: noise in spans of a mean length (1910.10683, section 3.1.4), each within one document
    fold_spans    a row with noise becomes a source with one sentinel per span, and the target that spells them out
    infill        BART's: spans, also empty ones, become one mask each (1910.13461, section 2.2)

What is read and what is written stand between the marks that fine-tuning puts there, not behind the document's mark of the stream.

B batch, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from orrery.ops.losses.cross_entropy import IGNORE


class Pairs(NamedTuple):
    """Sources and answers with their document ids, -1 padding behind: (B,S), (B,S), (B,U), (B,U) int64."""

    source: Tensor
    source_segments: Tensor
    answer: Tensor
    answer_segments: Tensor


class Marks(NamedTuple):
    """document: what documents of a stream begin with, which is left out. source, answer: what stands before what is read, and written."""

    document: int | None = None
    source: tuple[int, ...] = ()
    answer: tuple[int, ...] = ()


BARE = Marks()


def marks_of(tokenizer: Any) -> Marks:
    """The marks that fine-tuning puts before a source and an answer: those of the tokenizer's file, else its class mark if it has one."""
    if tokenizer.frame is not None:
        return Marks(tokenizer.doc_id, tokenizer.frame.front, tokenizer.frame.front)
    number = tokenizer.marks.get("class")
    return Marks(tokenizer.doc_id, () if number is None else (number,))


def choose(eligible: Tensor, share: float, draws: Tensor, words: Tensor | None = None) -> Tensor:
    """Which tokens are hidden, (B,T) bool: of every row the given share of the eligible ones, at least one where there is one; of
    whole words as many tokens as come nearest.

    Args:
        eligible: (B,T) bool. share: between 0 and 1. draws: (B,T) uniform numbers, which decide alone.
        words: (B,T) int64, the number of the word a token belongs to: whole words are hidden or left.
    """
    count = (eligible.sum(1, keepdim=True) * share).round().long().clamp(min=1)
    if words is None:
        draws = draws.masked_fill(~eligible, 2.0)
        return (draws <= draws.sort(1).values.gather(1, count - 1)) & eligible
    first = torch.full_like(draws, 2.0).scatter_reduce(1, words, draws, "amin", include_self=True)
    draws = first.gather(1, words).masked_fill(~eligible, 2.0)  # every token of a word has the least draw of them all
    ranked = draws.sort(1).values
    before, behind = torch.searchsorted(ranked, draws), torch.searchsorted(ranked, draws, right=True)
    return ((before + behind < 2 * count) | (before == 0)) & eligible  # a word is in where its middle is


def hide(
    tokens: Tensor, chosen: Tensor, mask: int, random: Tensor, kinds: Tensor, shares: tuple[float, float]
) -> Tensor:
    """Tokens (B,T) with the chosen ones replaced: a share by the mask, a share by `random` ids (B,T), the rest kept.

    Args:
        kinds: (B,T) uniform numbers that decide which. shares: of the mask, of random ids.
    """
    to_mask, to_other = shares
    hidden = torch.where(chosen & (kinds < to_mask), mask, tokens)
    return torch.where(chosen & (kinds >= to_mask) & (kinds < to_mask + to_other), random, hidden)


def span_noise(segments: Tensor, density: float, mean: float, draws: torch.Generator | None = None) -> Tensor:
    """Noise (B,T) bool: in every document (a run of one id above -1) about `density` of the tokens, in spans of mean length `mean`.

    Noise and what lies between are cut into equally many parts, each cut uniformly at random; a document begins with what is
    kept. Documents of one token get no noise.
    """
    noise = torch.zeros_like(segments, dtype=torch.bool)
    for row in range(len(segments)):
        for first, last in _runs(segments[row].tolist()):
            length = last - first
            count = min(max(round(length * density), 1), length - 1)
            spans = max(1, min(round(count / mean), count, length - count))
            if length < 2:
                continue
            hidden, kept = _parts(count, spans, draws), _parts(length - count, spans, draws)
            place = first
            for gap, span in zip(kept, hidden, strict=True):
                noise[row, place + gap : place + gap + span] = True
                place += gap + span
    return noise


def fold_spans(tokens: Tensor, segments: Tensor, noise: Tensor, sentinels: Sequence[int], end: int, around: Marks = BARE) -> Pairs:
    """Every span of noise becomes one sentinel in the source; the answer is each sentinel with what it stands for; `end` behind both.

    Sentinels begin anew in every document, and a document that has more spans than there are sentinels keeps the others
    as they are.
    """
    sources, answers = [], []
    for ids, marks, hidden in zip(tokens.tolist(), segments.tolist(), noise.tolist(), strict=True):
        source: list[tuple[int, int]] = []
        answer: list[tuple[int, int]] = []
        for first, last in _runs(marks):
            used, open_span, mark = 0, False, marks[first]
            source += [(token, mark) for token in around.source]
            answer += [(token, mark) for token in around.answer]
            for place in range(first + (ids[first] == around.document), last):
                if hidden[place] and (open_span or used < len(sentinels)):
                    if not open_span:
                        source.append((sentinels[used], mark))
                        answer.append((sentinels[used], mark))
                        used, open_span = used + 1, True
                    answer.append((ids[place], mark))
                else:
                    source.append((ids[place], mark))
                    open_span = False
            source.append((end, mark))
            answer.append((end, mark))
        sources.append(source)
        answers.append(answer)
    return _pairs(sources, answers, tokens.device)


def infill(
    tokens: Tensor,
    segments: Tensor,
    share: float,
    mean: float,
    mask: int,
    end: int,
    draws: torch.Generator | None = None,
    breaks: Tensor | None = None,
    around: Marks = BARE,
) -> Pairs:
    """Documents with spans of Poisson(`mean`) tokens replaced by one mask each, until `share` of the tokens is gone; the answer is
    the document itself; `end` behind both. A span of length 0 puts a mask in between.

    Args:
        breaks: (V,) bool, ids that end a sentence; sentences are then put in a random order first.
    """
    sources, answers = [], []
    for ids, marks in zip(tokens.tolist(), segments.tolist(), strict=True):
        source: list[tuple[int, int]] = []
        answer: list[tuple[int, int]] = []
        for first, last in _runs(marks):
            own, mark = ids[first + (ids[first] == around.document) : last], marks[first]
            answer += [(token, mark) for token in (*around.answer, *own, end)]
            shuffled = own if breaks is None else _shuffle(own, breaks, draws)
            source += [(token, mark) for token in (*around.source, *_infill(shuffled, share, mean, mask, draws), end)]
        sources.append(source)
        answers.append(answer)
    return _pairs(sources, answers, tokens.device)


def split_rows(
    tokens: Tensor, segments: Tensor, end: int, draws: torch.Generator | None = None, around: Marks = BARE
) -> Pairs:
    """Every document of two tokens or more, cut at a random place: its beginning is the source, the rest the answer; `end` behind both."""
    sources, answers = [], []
    for ids, marks in zip(tokens.tolist(), segments.tolist(), strict=True):
        source: list[tuple[int, int]] = []
        answer: list[tuple[int, int]] = []
        for first, last in _runs(marks):
            if last - first < 2:
                continue
            cut = first + 1 + int(torch.randint(last - first - 1, (), generator=draws))
            begin = first + (ids[first] == around.document)
            source += [(token, marks[first]) for token in (*around.source, *ids[begin:cut], end)]
            answer += [(token, marks[first]) for token in (*around.answer, *ids[cut:last], end)]
        sources.append(source)
        answers.append(answer)
    return _pairs(sources, answers, tokens.device)


def shifted(answer: Tensor, marks: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """(what the decoder reads, what it is asked for): every document's answer behind `start`; padding is IGNORE in the latter."""
    before = answer.roll(1, 1)
    fresh = torch.ones_like(marks, dtype=torch.bool)
    fresh[:, 1:] = marks[:, 1:] != marks[:, :-1]
    return before.masked_fill(fresh, start), answer.masked_fill(marks < 0, IGNORE)


def word_numbers(tokens: Tensor, segments: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """The word (0, 1, ...) that each token of (B,T) belongs to, from tables (V,) bool: begins, ends with a letter or digit."""
    joined = torch.zeros_like(tokens, dtype=torch.bool)
    joined[:, 1:] = first[tokens[:, 1:]] & last[tokens[:, :-1]] & (segments[:, 1:] == segments[:, :-1])
    return (~joined).cumsum(1) - 1


def _runs(marks: Sequence[int]) -> list[tuple[int, int]]:
    """[first, last) of every document of a row."""
    found, begin = [], 0
    for place in range(1, len(marks) + 1):
        if place == len(marks) or marks[place] != marks[begin]:
            if marks[begin] >= 0:
                found.append((begin, place))
            begin = place
    return found


def _parts(total: int, parts: int, draws: torch.Generator | None) -> list[int]:
    """`total` as a sum of so many positive numbers, every such sum equally likely."""
    cuts = sorted((torch.randperm(total - 1, generator=draws)[: parts - 1] + 1).tolist()) if total > 1 else []
    edges = [0, *cuts, total]
    return [b - a for a, b in zip(edges, edges[1:], strict=False)]


def _infill(ids: list[int], share: float, mean: float, mask: int, draws: torch.Generator | None) -> list[int]:
    budget = round(share * len(ids))
    gone = [False] * len(ids)
    starts: dict[int, int] = {}  # place -> length of the span that begins there
    for _ in range(4 * len(ids)):
        if budget <= 0 or not ids:
            break
        length = min(int(torch.poisson(torch.tensor(mean), generator=draws)), budget)
        place = int(torch.randint(len(ids) - length + 1, (), generator=draws)) if length <= len(ids) else 0
        around = gone[max(0, place - 1) : place + length + 1]
        if any(around) or place in starts:
            continue
        starts[place] = length
        gone[place : place + length] = [True] * length
        budget -= length
    found: list[int] = []
    for place, token in enumerate(ids):
        if place in starts:
            found.append(mask)
        if not gone[place]:
            found.append(token)
    return found or [mask]


def _shuffle(ids: list[int], breaks: Tensor, draws: torch.Generator | None) -> list[int]:
    sentences: list[list[int]] = [[]]
    for token in ids:
        sentences[-1].append(token)
        if bool(breaks[token]):
            sentences.append([])
    sentences = [sentence for sentence in sentences if sentence]
    return [token for i in torch.randperm(len(sentences), generator=draws).tolist() for token in sentences[i]]


def _pairs(sources: list[list[tuple[int, int]]], answers: list[list[tuple[int, int]]], device: torch.device) -> Pairs:
    return Pairs(*(tensor.to(device) for rows in (sources, answers) for tensor in _padded(rows)))


def _padded(rows: list[list[tuple[int, int]]]) -> tuple[Tensor, Tensor]:
    length = max(1, *(len(row) for row in rows)) if rows else 1
    ids, marks = torch.zeros(len(rows), length, dtype=torch.int64), torch.full((len(rows), length), -1)
    for number, row in enumerate(rows):
        if row:
            both = torch.tensor(row, dtype=torch.int64)
            ids[number, : len(row)], marks[number, : len(row)] = both[:, 0], both[:, 1]
    return ids, marks
