"""Pretext tasks: what is hidden and what is asked for, against loops and laws; marks come from the tokenizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import orrery
from orrery.core.errors import ConfigError
from orrery.data.dataset import build_tokenizer
from orrery.data.marks import spans, with_marks
from orrery.data.tokenizers import BPETokenizer, ByteTokenizer
from orrery.data.wordpiece import WordPieceTokenizer
from orrery.models import corruption
from orrery.ops.losses.cross_entropy import IGNORE
from orrery.train.engine import Pair

V = 60


def rows(seed=0, batch=4, length=40):
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 50, (batch, length), generator=g)
    segments = torch.zeros_like(tokens)
    for row in range(batch):
        segments[row, 13 + row :] = 3
        segments[row, length - 2 * row :] = -1
    return tokens, segments


def encoder(**settings):
    model = orrery.create_model("bert", vocab_size=V, width=16, depth=1, seed=1)
    objective = orrery.create_objective("masked-lm", **settings)
    return model, objective


def test_the_shares_of_masked_language_modelling():
    _, objective = encoder(share=0.2)
    tokens = torch.randint(0, V - 1, (200, 100), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    hidden, targets = objective.corrupt(tokens, None, V)
    chosen = targets != IGNORE
    assert (chosen.sum(1) == 20).all() and (targets[chosen] == tokens[chosen]).all()
    assert (hidden[~chosen] == tokens[~chosen]).all()
    masked, kept = (hidden[chosen] == V - 1).float().mean(), (hidden[chosen] == tokens[chosen]).float().mean()
    assert masked == pytest.approx(0.8, abs=0.02)
    assert kept == pytest.approx(0.1 + 0.1 / V, abs=0.015)


def test_padding_and_marks_are_never_hidden_nor_put_in():
    tokenizer = with_marks(ByteTokenizer(), ("mask",))
    model = orrery.create_model("bert", vocab_size=258, width=16, depth=1)
    objective = orrery.create_objective("masked-lm", share=0.5, masked=0.0, random=1.0)
    Pair(model, objective, tokenizer)
    tokens, segments = rows()
    tokens[:, ::5] = tokenizer.doc_id
    for seed in range(20):
        torch.manual_seed(seed)
        hidden, targets = objective.corrupt(tokens, segments, 258)
        assert (targets[segments < 0] == IGNORE).all() and (targets[tokens == tokenizer.doc_id] == IGNORE).all()
        assert not (hidden[targets != IGNORE] >= 256).any()


def test_static_masks_are_the_row_s_own_and_dynamic_ones_are_new():
    tokens, segments = rows()
    _, static = encoder(static=True)
    first = static.corrupt(tokens, segments, V)
    torch.manual_seed(9)
    again = static.corrupt(tokens[[2, 0]], segments[[2, 0]], V)
    assert torch.equal(first[0][[2, 0]], again[0]) and torch.equal(first[1][[2, 0]], again[1])
    many = torch.randint(0, V - 1, (400, 64))
    share = (static.corrupt(many, None, V)[1] != IGNORE).float().mean(0)
    assert share.std() < 0.04, "every place is as likely as another"
    _, dynamic = encoder()
    assert not torch.equal(dynamic.corrupt(tokens, segments, V)[0], dynamic.corrupt(tokens, segments, V)[0])


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "bytes"])
def test_whole_words_are_hidden_whole(kind):
    text = "unbelievable stories of the riverbank, told again and again by patient storytellers " * 3
    tokenizer = {
        "wordpiece": lambda: WordPieceTokenizer.build("90", [text]),
        "bpe": lambda: with_marks(BPETokenizer.build("290", [text]), ("mask",)),
        "bytes": lambda: with_marks(ByteTokenizer(), ("mask",)),
    }[kind]()
    model = orrery.create_model("bert", vocab_size=tokenizer.vocab_size, width=16, depth=1)
    objective = orrery.create_objective("masked-lm", share=0.3, whole_words=True)
    Pair(model, objective, tokenizer)
    ids = torch.tensor(tokenizer.encode(text).astype(np.int64))[None]
    torch.manual_seed(0)
    _, targets = objective.corrupt(ids, None, tokenizer.vocab_size)
    chosen, words = targets[0] != IGNORE, corruption.word_numbers(ids, torch.zeros_like(ids), *objective.edges)[0]
    for word in words.unique():
        own = chosen[words == word]
        assert own.all() or not own.any()
        assert " " not in tokenizer.decode(ids[0][words == word].tolist()).strip()
    assert 0.2 < chosen.float().mean() < 0.45
    with pytest.raises(ConfigError, match="whole words need a tokenizer"):
        Pair(model, orrery.create_objective("masked-lm", whole_words=True))


@pytest.mark.parametrize("most", [1, 5, 12])
def test_whole_words_have_the_share_asked_for(most):
    draw = torch.Generator().manual_seed(most)
    words = (torch.rand(600, 120, generator=draw) < 2 / (most + 1)).cumsum(1)
    words -= words[:, :1].clone()  # a word begins every (most + 1) / 2 tokens
    draws, every = torch.rand(600, 120, generator=draw), torch.ones_like(words, dtype=torch.bool)
    chosen = corruption.choose(every, 0.15, draws, words)
    assert chosen.float().mean() == pytest.approx(0.15, abs=0.004) and chosen.any(1).all()
    if most == 1:
        assert torch.equal(chosen, corruption.choose(every, 0.15, draws))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.6), st.floats(1, 6))
def test_cut_out_spans_put_together_are_the_text(seed, share, mean):
    tokens, segments = rows(seed)
    sentinels, end = tuple(range(52, 60)), 1
    torch.manual_seed(seed)
    noise = corruption.span_noise(segments, share, mean)
    assert not noise[segments < 0].any()
    pairs = corruption.fold_spans(tokens, segments, noise, sentinels, end)
    for row in range(len(tokens)):
        for mark in (0, 3):
            source = pairs.source[row][pairs.source_segments[row] == mark].tolist()
            answer = pairs.answer[row][pairs.answer_segments[row] == mark].tolist()
            assert answer[-1] == end == source.pop()
            filled, rest = {}, answer[:-1]
            for token in rest:
                if token in sentinels:
                    current = filled.setdefault(token, [])
                else:
                    current.append(token)
            text = [t for token in source for t in (filled[token] if token in sentinels else [token])]
            assert text == tokens[row][segments[row] == mark].tolist()
            assert sorted(filled) == list(sentinels[: len(filled)]), "sentinels begin anew in every document"


def test_spans_have_the_share_and_mean_length_asked_for():
    segments = torch.zeros(300, 100, dtype=torch.int64)
    noise = corruption.span_noise(segments, 0.15, 3.0)
    assert (noise.sum(1) == 15).all() and not noise[:, 0].any()
    begins = noise & ~noise.roll(1, 1)
    assert begins.sum().item() / 300 == 5
    assert noise.float().mean(0)[20:80].std() < 0.05


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.0, 0.6))
def test_infilled_texts_keep_what_is_not_masked_in_order(seed, share):
    tokens, segments = rows(seed)
    torch.manual_seed(seed)
    pairs = corruption.infill(tokens, segments, share, 3.0, mask=59, end=1)
    for row in range(len(tokens)):
        for mark in (0, 3):
            own = tokens[row][segments[row] == mark].tolist()
            source = pairs.source[row][pairs.source_segments[row] == mark].tolist()
            assert pairs.answer[row][pairs.answer_segments[row] == mark].tolist() == [*own, 1]
            assert source.pop() == 1
            left = iter(own)
            assert all(token in left for token in source if token != 59), "a subsequence"
            gone = len(own) - sum(token != 59 for token in source)
            assert gone <= round(share * len(own)) and (gone or source.count(59) or not round(share * len(own)))


@pytest.mark.parametrize(("share", "mean"), [(0.3, 3.0), (0.15, 1.0)])
def test_the_share_of_infilling_is_of_tokens_however_many_spans_are_empty(share, mean):
    tokens = torch.arange(5, 55).expand(20, -1)
    torch.manual_seed(0)
    source = corruption.infill(tokens, torch.zeros_like(tokens), share, mean, mask=59, end=1).source
    assert ((source >= 5) & (source < 55)).sum() == tokens.numel() - 20 * round(share * 50)


@pytest.mark.parametrize(("source", "answer"), [((), ()), ((2,), ()), ((2,), (2,))])
def test_texts_stand_between_the_marks_of_fine_tuning_without_the_document_s(source, answer):
    tokens, around = torch.tensor([[9, 5, 50, 6, 50, 9, 7, 50]]), corruption.Marks(9, source, answer)
    segments = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1]])
    breaks = torch.zeros(V, dtype=torch.bool)
    breaks[50] = True
    for seed in range(10):
        torch.manual_seed(seed)
        infilled = corruption.infill(tokens, segments, 0.5, 1.0, 59, end=9, breaks=breaks, around=around)
        noise = corruption.span_noise(segments, 0.5, 1.0)
        folded = corruption.fold_spans(tokens, segments, noise, range(52, 60), end=9, around=around)
        cut = corruption.split_rows(tokens, segments, end=9, around=around)
        for pairs in (infilled, folded, cut):
            for mark in (0, 1):
                read = pairs.source[0][pairs.source_segments[0] == mark].tolist()
                written = pairs.answer[0][pairs.answer_segments[0] == mark].tolist()
                assert (tuple(read[: len(source)]), tuple(written[: len(answer)])) == (source, answer)
                assert read.index(9) == len(read) - 1 and written.index(9) == len(written) - 1
        assert infilled.answer[0].tolist() == [*answer, 5, 50, 6, 50, 9, *answer, 7, 50, 9]


def test_sentences_are_shuffled_whole():
    breaks = torch.zeros(V, dtype=torch.bool)
    breaks[50] = True
    tokens = torch.tensor([[5, 6, 50, 7, 50, 8, 9, 50]])
    found = set()
    for seed in range(20):
        torch.manual_seed(seed)
        pairs = corruption.infill(tokens, torch.zeros_like(tokens), 0.0, 3.0, 59, 1, breaks=breaks)
        found.add(tuple(pairs.source[0].tolist()[:-1]))
    sentences = {(5, 6, 50), (7, 50), (8, 9, 50)}
    assert len(found) == 6 and all(any(text[: len(s)] == s for s in sentences) for text in found)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_a_prefix_and_its_rest_are_the_text(seed):
    tokens, segments = rows(seed)
    torch.manual_seed(seed)
    pairs = corruption.split_rows(tokens, segments, end=1)
    target, wanted = corruption.shifted(pairs.answer, pairs.answer_segments, start=0)
    for row in range(len(tokens)):
        for mark in (0, 3):
            own = pairs.answer_segments[row] == mark
            source = pairs.source[row][pairs.source_segments[row] == mark].tolist()
            answer = pairs.answer[row][own].tolist()
            assert source.pop() == 1
            assert [*source, *answer] == [*tokens[row][segments[row] == mark].tolist(), 1] and source
            assert target[row][own].tolist() == [0, *answer[:-1]] and wanted[row][own].tolist() == answer
    assert (wanted[pairs.answer_segments < 0] == IGNORE).all()


def test_marks_come_from_the_tokenizer_or_are_asked_for(tmp_path):
    model = orrery.create_model("t5", vocab_size=300, width=16, depth=1)
    span = orrery.create_objective("span-corruption")
    Pair(model, span, with_marks(ByteTokenizer(), spans(12)))
    assert span.sentinels == tuple(range(257, 269))
    for name, words in (
        ("masked-lm", "has no mask; write it as bytes+mask"),
        ("denoising", "has no mask"),
        ("span-corruption", "no sentinels"),
    ):
        with pytest.raises(ConfigError, match=words.replace("+", r"\+")):
            Pair(model, orrery.create_objective(name), ByteTokenizer())
    assert set(build_tokenizer("bytes+mask+spans-3", "stdlib").marks) == {"mask", "span-0", "span-1", "span-2"}


def test_documents_of_a_row_do_not_mix():
    """The loss of two documents in one row is that of the two in rows of their own."""
    model = orrery.create_model("t5", vocab_size=V, width=16, depth=1, seed=0).double().eval()
    objective = orrery.create_objective("text-to-text")
    g = torch.Generator().manual_seed(0)
    source, answer = (torch.randint(2, 50, (2, 6), generator=g) for _ in range(2))
    apart = objective(model, {"tokens": source, "answer": answer})[0]
    marks = torch.tensor([[0] * 6 + [1] * 6])
    joined = {"tokens": source.view(1, 12), "segments": marks, "answer": answer.view(1, 12), "answer_segments": marks}
    torch.testing.assert_close(objective(model, joined)[0], apart)


@pytest.mark.parametrize("training", [False, True])
def test_an_answer_without_a_source_reads_no_other_s(training):
    model = orrery.create_model("t5", vocab_size=V, width=16, depth=1, seed=0).double().train(training)
    source, target = torch.arange(2, 8)[None], torch.arange(9, 17)[None]
    marks, asked = torch.tensor([[0, 0, 0, 2, 2, 2]]), torch.tensor([[0, 0, 1, 1, 2, 2, -1, -1]])
    other = source.clone()
    other[0, :3] = 40
    first, second = (model(ids, target, marks, asked).logits for ids in (source, other))
    assert torch.equal(first[0, 2:6], second[0, 2:6]) and not torch.equal(first[0, :2], second[0, :2])


def test_a_masked_lm_computes_its_head_for_hidden_tokens_only(monkeypatch):
    from orrery.models.scoring import nats, score

    model, objective = encoder()
    tokens, segments = rows()
    hidden, targets = objective.corrupt(tokens, segments, V)
    out = model(hidden, segments=segments)
    wanted = model.head.loss(out.logits, targets)
    seen, transform = [], model.head.transform
    monkeypatch.setattr(model.head, "transform", lambda h: seen.append(h.shape[:-1].numel()) or transform(h))
    found = score(model, out, targets)
    assert seen == [int((targets != IGNORE).sum())] and torch.allclose(found.loss, wanted, rtol=1e-6)
    each = nats(model, out, targets)
    assert torch.allclose(each.sum(), found.nats, rtol=1e-5) and not each[targets == IGNORE].any()
    found.loss.backward()
    assert model.embed.weight.grad.abs().sum() > 0 and model.head.dense.weight.grad.abs().sum() > 0


def test_dotted_settings_reach_into_an_objective_s_task():
    assert orrery.create_objective("distilled-masked-lm", **{"task.share": 0.3}).task.config.share == 0.3
    with pytest.raises(ConfigError, match=r"unknown setting 'task\.shore'"):
        orrery.create_objective("distilled-masked-lm", **{"task.shore": 0.3})
