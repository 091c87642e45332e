"""The contract checks of encoders and encoder-decoders: one function of documents, however they are padded, packed or stored.

Every check takes a :class:`~orrery.testing.model.ModelSubject` and raises AssertionError with numbers.

B batch, T time, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from orrery.core.errors import ConfigError, DataError, StateError
from orrery.models.convert import with_head
from orrery.models.heads import HEADS
from orrery.nn.contract import Context
from orrery.nn.state import state_bytes
from orrery.testing.tolerance import assert_close, assert_finite, assert_same
from orrery.testing.whole import (
    check_flops,
    check_gradients,
    check_parameters,
    check_recomputed,
    check_stored,
    halves,
    ladder,
    must_raise,
    refuses_settings,
)

Subject = Any  # a ModelSubject; that file lists these checks
LENGTHS = (9, 1, 14, 9)


def _texts(subject: Subject) -> list[Tensor]:
    return [subject.tokens(1, length, seed=length + number) for number, length in enumerate(LENGTHS)]


def _padded(texts: list[Tensor], places: list[int], width: int) -> tuple[Tensor, Tensor]:
    """One row per text, beginning at its place, padding elsewhere: tokens and segments (N,width)."""
    tokens = torch.zeros(len(texts), width, dtype=torch.int64)
    segments = torch.full_like(tokens, -1)
    for row, (text, place) in enumerate(zip(texts, places, strict=True)):
        tokens[row, place : place + text.shape[1]] = text[0]
        segments[row, place : place + text.shape[1]] = 0
    return tokens, segments


# ---------------------------------------------------------------- encoders


def interface(subject: Subject) -> None:
    """Shapes, lazy scores, no state, and clear errors for tokens, segments, types and settings that do not fit."""
    model, tokens = subject.build(torch.float32), subject.tokens(2, 7)
    out = model(tokens)
    assert model.vocab_size == subject.vocab, f"vocab_size is {model.vocab_size}, not {subject.vocab}"
    assert out.hidden.shape == (2, 7, model.config.width), f"hidden has shape {tuple(out.hidden.shape)}"
    assert out.state is None, "an encoder returned a state"
    assert_finite(out.hidden, "hidden")
    assert (out.logits is None) == (model.head is None), "logits are there without a head, or not there with one"
    too_large, empty = tokens.clone(), tokens[:, :0]
    too_large[1, 3] = subject.vocab
    must_raise(lambda: model(too_large), ConfigError, "a token outside the vocabulary")
    must_raise(lambda: model(empty), StateError, "an empty input")
    must_raise(lambda: model(tokens, state=(1, 2)), StateError, "a state")
    must_raise(lambda: model(tokens, segments=torch.tensor([[1, 0] + [0] * 5] * 2)), StateError, "segments that decrease")
    must_raise(lambda: model(tokens, segments=tokens[:, :3]), StateError, "segments of another shape")
    refuses_settings(subject, no_such_setting=1, head="no-such-head")


def padding(subject: Subject) -> None:
    """Padding behind, before and inside changes nothing, is zero in `hidden`, and NaN at padding is not seen."""
    model, texts = subject.build(), _texts(subject)
    places = [0, 7, 3, 5]
    tokens, segments = _padded(texts, places, 20)
    inside = torch.cat([texts[0][:, :4], subject.tokens(1, 3), texts[0][:, 4:]], 1)
    marks = torch.tensor([[0] * 4 + [-1] * 3 + [0] * 5])
    with torch.no_grad():
        alone = [model(text).hidden for text in texts]
        hidden = model(tokens, segments=segments).hidden
        for row, (place, want) in enumerate(zip(places, alone, strict=True)):
            assert_close(hidden[row : row + 1, place : place + want.shape[1]], want, f"row {row} of a padded batch, compared to it alone,")
        assert not bool(hidden[segments < 0].any()), "hidden is not zero at padding"
        broken = model(inside, segments=marks).hidden
        assert_close(broken[marks >= 0], alone[0][0], "a document with padding inside")
        embeds = model.embed(tokens).masked_fill((segments < 0)[..., None], float("nan"))
        poisoned = model(embeds=embeds, segments=segments, ctx=Context(tokens=tokens)).hidden
        assert_close(poisoned, hidden, "hidden with NaN at padding")


def packing(subject: Subject) -> None:
    """Documents in one row do not see each other, whatever their order and number."""
    model, texts = subject.build(), _texts(subject)
    row = torch.cat([*texts, subject.tokens(1, 3)], 1)
    segments = torch.repeat_interleave(torch.tensor([0, 2, 3, 7, -1]), torch.tensor([*LENGTHS, 3]))[None]
    with torch.no_grad():
        hidden, begin = model(row, segments=segments).hidden, 0
        for text in texts:
            stop = begin + text.shape[1]
            assert_close(hidden[:, begin:stop], model(text).hidden, f"the document at {begin} of a packed row")
            begin = stop
        both = torch.cat([row, row.roll(9, 1)])
        twice = model(both, segments=torch.cat([segments, segments.clamp(max=0)])).hidden[:1]
        assert_close(twice, hidden, "a packed row beside another")


def gradients(subject: Subject) -> None:
    """The gradients of a padded batch are the sums of those of its documents alone."""
    model, texts = subject.build(), _texts(subject)
    tokens, segments = _padded(texts, [0, 7, 3, 5], 20)
    parameters = [p for p in model.parameters() if p.requires_grad]
    whole = torch.autograd.grad(model(tokens, segments=segments).hidden.square().sum(), parameters, allow_unused=True)
    alone = torch.autograd.grad(sum(model(text).hidden.square().sum() for text in texts), parameters, allow_unused=True)
    for (name, _), a, b in zip(model.named_parameters(), whole, alone, strict=True):
        assert (a is None) == (b is None), f"{name} has a gradient only in a padded batch or only without one"
        if a is not None and b is not None:
            assert_close(a, b, f"the gradient of {name} in a padded batch", gradient=True)


def batch(subject: Subject) -> None:
    """A row's hidden states do not depend on the rows beside it."""
    model, tokens = subject.build(torch.float32), subject.tokens(4, 20)
    with torch.no_grad():
        together = model(tokens).hidden
        for row in range(4):
            assert_close(together[row : row + 1], model(tokens[row : row + 1]).hidden, f"row {row} of a batch, compared to the row alone,")


def seeds(subject: Subject) -> None:
    """A seed names the initial parameters, leaves the global generator alone, and repeated calls give the same bits."""
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first, again, other = (subject.build(torch.float32, seed, randomise=False) for seed in (5, 5, 6))
    assert_same(torch.rand(3), expected, "torch's global generator after create_model(seed=...)")
    for name, value in first.state_dict().items():
        assert_same(again.state_dict()[name], value, f"{name} of a second model with the same seed")
        assert_finite(value, name)
    assert any(not torch.equal(value, other.state_dict()[name]) for name, value in first.state_dict().items()), "two seeds build the same model"
    assert_same(_hidden(subject, first), _hidden(subject, first), "hidden of a second call")


def _hidden(subject: Subject, model: Any) -> Tensor:
    """Hidden states of a fixed batch; of an encoder-decoder those of its decoder."""
    tokens = subject.tokens(3, 33)
    with torch.no_grad():
        out = model(tokens, subject.tokens(3, 12)) if hasattr(model, "decoder") else model(tokens)
    return cast(Tensor, out.hidden)


def saved(subject: Subject) -> None:
    """save and load keep every bit, and what is loaded is independent of what was saved."""
    check_stored(subject.build(torch.float32), lambda model: _hidden(subject, model), "hidden")


def every_parameter(subject: Subject) -> None:
    """Every parameter receives a finite gradient that is not zero."""
    model, tokens = subject.build(torch.float32), subject.tokens(3, 30)
    types = torch.arange(30).remainder(model.config.embedding.types).expand(3, -1) if model.type_embed is not None else None
    out = model(tokens, types=types)
    scores = out.hidden if model.head is None else out.logits
    loss = (scores * torch.randn(scores.shape, generator=torch.Generator().manual_seed(0))).sum()
    loss.backward()
    check_gradients(model)


def parts(subject: Subject) -> None:
    """embeds may stand for tokens; hidden_states ends in hidden; recomputed blocks change no gradient."""
    model, tokens = subject.build(), subject.tokens(2, 12)
    whole = model(tokens)
    assert_close(model(embeds=model.embed(tokens), ctx=Context(tokens=tokens)).hidden, whole.hidden, "embeds in place of tokens")
    states = model.hidden_states(tokens)
    assert len(states) == model.config.depth + 1, f"{len(states)} hidden states of {model.config.depth} layers"
    assert_close(states[-1], whole.hidden, "the last of hidden_states")
    check_recomputed(model, lambda: cast(Tensor, model(tokens).hidden))


def heads(subject: Subject) -> None:
    """Every head fits: scores of the right shape, a finite loss that differentiates, a prediction; and saved with the model."""
    model, tokens = subject.build(torch.float32), subject.tokens(2, 11)
    two, segments = torch.tensor([[0] * 5 + [1] * 6] * 2), torch.tensor([[0] * 11, [0] * 8 + [-1] * 3])
    tags = subject.tokens(2, 11).remainder(3).masked_fill(segments < 0, -100)
    targets: dict[str, Tensor] = {
        "masked-lm": tokens, "classification": torch.tensor([0, 2]), "multi-label": torch.tensor([[0, 1, 1], [1, 0, 0]]),
        "regression": torch.tensor([0.5, -1.0]), "ordinal": torch.tensor([2, 0]), "tagging": tags, "span": torch.tensor([[1, 3], [0, 0]]),
        "pairs": torch.tensor([1, 0]), "multiple-choice": torch.tensor([1, 0]), "replaced-tokens": tags.clamp(max=1),
    }  # fmt: skip
    for name in HEADS:
        settings: dict[str, Any] = {"labels": 3} if name in ("classification", "multi-label", "ordinal", "tagging", "pairs") else {}
        own = with_head(model, name, **settings)
        marks = two if name in ("pairs", "multiple-choice") else segments
        with torch.no_grad():
            assert_same(own(tokens, segments=marks).hidden, model(tokens, segments=marks).hidden, f"hidden under the head '{name}'")
        out = own(tokens, segments=marks)
        assert own.head is not None and out.logits is not None, f"the head '{name}' is missing"
        assert_finite(out.logits, f"the scores of the head '{name}'")
        assert len(own.head.predict(out.logits, marks)) == 2, f"the head '{name}' predicts for {len(out.logits)} rows, not 2"
        if name in targets:
            loss = own.head.loss(out.logits, targets[name], marks)
            assert_finite(loss, f"the loss of the head '{name}'")
            loss.backward()
            assert model.embed.weight.grad is None, "a new head's gradient reached the model it was made from"


def costs(subject: Subject) -> None:
    """flops are what is counted; the parameters without embedding and head are counted right."""
    model, tokens = subject.build(torch.float32), subject.tokens(2, 24)
    check_flops(lambda: model(tokens), model.flops(24, head=False), 24)
    check_parameters(model, (model.embed, model.head, model.position_embed, model.type_embed))


def learns(subject: Subject) -> None:
    """Forty steps of plain AdamW on telling two kinds of text apart at least halve the loss."""
    model = with_head(subject.build(torch.float32, randomise=False), "classification", labels=2).train()
    tokens, labels = subject.tokens(16, 12), torch.arange(16) % 2
    tokens[labels == 1, 5] = 7
    tokens[(labels == 0)[:, None] & (tokens == 7)] = 8

    def loss() -> Tensor:
        assert model.head is not None
        return model.head.loss(cast(Tensor, model(tokens).logits), labels)

    halves(model, loss)


ENCODER_CHECKS: dict[str, Callable[[Subject], None]] = {
    "interface": interface,
    "padding": padding,
    "packing": packing,
    "gradients": gradients,
    "batch": batch,
    "seeds": seeds,
    "saved": saved,
    "every_parameter": every_parameter,
    "parts": parts,
    "heads": heads,
    "costs": costs,
    "ladder": ladder,
    "learns": learns,
}


# ---------------------------------------------------------------- encoder-decoders


def pair_interface(subject: Subject) -> None:
    """Shapes and clear errors for pairs that do not fit."""
    model, source, target = subject.build(torch.float32), subject.tokens(2, 7), subject.tokens(2, 5)
    out = model(source, target)
    assert out.logits.shape == (2, 5, subject.vocab), f"logits have shape {tuple(out.logits.shape)}"
    assert_finite(out.logits, "the logits")
    must_raise(lambda: model(source, target[:1]), StateError, "another number of sources than targets")
    must_raise(lambda: model.decode(target, None), ConfigError, "a target without a memory")
    must_raise(lambda: model(source, target, state=model(source[:1], target[:1]).state), StateError, "a state of another batch size")
    too_large = source.clone()
    too_large[0, 0] = subject.vocab
    must_raise(lambda: model(too_large, target), ConfigError, "a source token outside the vocabulary")
    refuses_settings(subject, no_such_setting=1)


def cached(subject: Subject) -> None:
    """Target by token, by the state alone, equals the target at once; with padding in the source too."""
    model, target = subject.build(), subject.tokens(4, 12)
    source, marks = _padded(_texts(subject), [0, 7, 3, 5], 20)
    state: Any = None
    with torch.no_grad():
        whole = model(source, target, source_segments=marks).logits
        memory, found = model.encode(source, marks), []
        for step in range(12):
            out = model.decode(target[:, step : step + 1], memory if state is None else None, state=state)
            state = out.state
            found.append(out.logits)
        assert_close(torch.cat(found, 1), whole, "a target read token by token")
        kept = torch.tensor([2, 0])
        again = model.decode(target[kept, :1], None, state=state.select(kept))
        other = model.decode(target[:, :1], None, state=state)
        assert_close(again.logits, other.logits[kept], "two rows of a state, continued")


def pair_padding(subject: Subject) -> None:
    """Padding in source and target changes nothing; several pairs in a row do not see each other."""
    model, sources = subject.build(), _texts(subject)
    targets = [subject.tokens(1, n, seed=50 + n) for n in (5, 8, 1, 3)]
    source, source_marks = _padded(sources, [0, 7, 3, 5], 20)
    target, marks = _padded(targets, [0, 0, 0, 0], 8)
    numbers = torch.arange(4)
    with torch.no_grad():
        alone = [model(a, b).logits for a, b in zip(sources, targets, strict=True)]
        together = model(source, target, source_segments=source_marks, segments=marks).logits
        for row, want in enumerate(alone):
            assert_close(together[row : row + 1, : want.shape[1]], want, f"pair {row} of a padded batch, compared to it alone,")
        packed = model(
            torch.cat(sources, 1), torch.cat(targets, 1),
            source_segments=numbers.repeat_interleave(torch.tensor(LENGTHS))[None],
            segments=numbers.repeat_interleave(torch.tensor([5, 8, 1, 3]))[None],
        ).logits  # fmt: skip
        assert_close(packed, torch.cat(alone, 1), "pairs packed in one row")


def pair_causality(subject: Subject) -> None:
    """Logits do not depend on later target tokens, and do depend on the source."""
    model, source, target = subject.build(), subject.tokens(2, 9), subject.tokens(2, 30)
    with torch.no_grad():
        whole = model(source, target).logits
        other = target.clone()
        other[:, 12:] = subject.tokens(2, 30, seed=4)[:, 12:]
        assert_close(model(source, other).logits[:, :12], whole[:, :12], "the logits under another future")
        moved = model(source.flip(1), target).logits
        assert float((moved - whole).abs().max()) > 1e-6, "the logits do not depend on the source"


def pair_every_parameter(subject: Subject) -> None:
    """Every parameter of both stacks receives a finite gradient that is not zero."""
    model = subject.build(torch.float32)
    logits = model(subject.tokens(3, 30), subject.tokens(3, 20)).logits
    nn.functional.cross_entropy(logits.flatten(0, 1), subject.tokens(3, 20, seed=2).flatten()).backward()
    check_gradients(model)


def pair_costs(subject: Subject) -> None:
    """state_bytes and flops are what is held and counted for a pair of equal lengths."""
    model, tokens = subject.build(torch.float32), subject.tokens(2, 24)
    out = model(tokens, tokens)
    held, declared = state_bytes(out.state) / 2, model.state_bytes(24)
    assert declared == held, f"state_bytes(24) says {declared}, the state holds {held:g} bytes per pair"

    def read() -> None:
        memory, state = model.encode(tokens), None
        for time in range(24):
            out = model.decode(tokens[:, time : time + 1], memory if state is None else None, state=state)
            state = out.state
            assert out.logits is not None

    check_flops(read, model.flops(24), 24)
    encoder, decoder = model.encoder, model.decoder
    check_parameters(model, (encoder.embed, encoder.position_embed, decoder.embed, decoder.position_embed, decoder.head))


def pair_learns(subject: Subject) -> None:
    """Forty steps of plain AdamW on turning a text around at least halve the loss."""
    model = subject.build(torch.float32, randomise=False).train()
    source = subject.tokens(8, 6)
    target = torch.cat([torch.zeros(8, 1, dtype=torch.int64), source.flip(1)], 1)
    halves(model, lambda: nn.functional.cross_entropy(model(source, target[:, :-1]).logits.flatten(0, 1), target[:, 1:].flatten()))


def pair_heads(subject: Subject) -> None:
    """With a head both stacks read one text, the decoder a token late, whatever stands beside it; it learns, costs and is stored whole."""
    model, tokens = subject.build(), subject.tokens(2, 24)
    if "whole" in subject.tags:
        must_raise(lambda: with_head(model, "classification"), ConfigError, "a head on a model that only writes")
        return
    start, stop, root = model.config.start, model.config.stop, model.config.width**0.5 if model.config.small_logits else 1.0
    reader: Any = with_head(model, "classification", labels=3)
    end_id = 3 if stop is None else stop
    texts = [torch.cat([text[:, 1:], torch.tensor([[end_id]])], 1) for text in _texts(subject)]
    rows, marks = _padded(texts, [0, 7, 3, 5], 20)
    rows = torch.where(marks < 0, subject.tokens(4, 20, seed=9), rows)
    packed = torch.arange(4).repeat_interleave(torch.tensor(LENGTHS))[None]
    with torch.no_grad():
        out, begin = reader(rows, segments=marks), 0
        beside = reader(torch.cat(texts, 1), segments=packed)
        for row, text in enumerate(texts):
            late, end = torch.cat([torch.tensor([[start]]), text[:, :-1]], 1), begin + text.shape[1]
            want = root * model(text, late).hidden
            assert_close(reader(text).hidden, want, f"text {row} with a head, compared to the decoder that writes it a token late,")
            assert_close(out.hidden[row : row + 1][:, marks[row] >= 0], want, f"row {row} of a padded batch, compared to it alone,")
            assert_close(beside.hidden[:, begin:end], want, f"the document at {begin} of a packed row")
            scores = reader.head.out(torch.tanh(reader.head.dense(want[:, -1])))
            for found in (out.logits, beside.logits):
                assert_close(found[row : row + 1], scores, f"the scores of text {row}, from the state at its last token,")
            begin = end
        assert not bool(out.hidden[marks < 0].any()), "hidden is not zero at padding"
        if stop is not None:
            must_raise(lambda: reader(torch.full((1, 3), (stop + 1) % subject.vocab)).logits, DataError, "a text without its last token")
    reader = with_head(subject.build(torch.float32), "tagging", labels=3)
    scores = reader(tokens).logits
    (scores * torch.randn(scores.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    check_gradients(reader)
    check_flops(lambda: reader(tokens).logits, reader.flops(24), 24)
    encoder, decoder = reader.encoder, reader.decoder
    check_parameters(reader, (encoder.embed, encoder.position_embed, decoder.embed, decoder.position_embed, decoder.head, reader.head))
    check_stored(reader, lambda each: cast(Tensor, each(tokens).logits), "the scores")


PAIR_CHECKS: dict[str, Callable[[Subject], None]] = {
    "interface": pair_interface,
    "cached": cached,
    "padding": pair_padding,
    "causality": pair_causality,
    "seeds": seeds,
    "saved": saved,
    "every_parameter": pair_every_parameter,
    "heads": pair_heads,
    "costs": pair_costs,
    "ladder": ladder,
    "learns": pair_learns,
}
