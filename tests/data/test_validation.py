"""Validation windows: whole documents, no window across two, every target once, bytes exact."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orrery.core.errors import ConfigError
from orrery.data import TokenFile, prepare, validation_windows, write_tokens
from orrery.data.corpora import MemoryCorpus

DOC = 50_000
SIZES = [1, 2, 30, 31, 32, 33, 64, 100, 5, 250]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TokenFile:
    documents = [(np.arange(size) + 1000 * number, 3 * size) for number, size in enumerate(SIZES)]
    return write_tokens(tmp_path_factory.mktemp("tokens") / "x", documents, DOC + 1, DOC)


@given(length=st.integers(1, 70), batch=st.integers(1, 9), budget=st.one_of(st.none(), st.integers(1, 2000)))
def test_every_target_of_the_chosen_documents_is_scored_once_in_its_own_context(
    tokens: TokenFile, length: int, batch: int, budget: int | None
):
    windows = validation_windows(tokens, length, batch, budget)
    scored: dict[int, list[tuple[int, int]]] = {}
    rows = 0
    for found in windows:
        assert found["tokens"].shape == found["segments"].shape == (len(found["documents"]), length + 1)
        for row, segments, document in zip(
            found["tokens"].tolist(), found["segments"].tolist(), found["documents"].tolist(), strict=True
        ):
            filled = segments.index(-1) if -1 in segments else length + 1
            assert segments == [0] * filled + [-1] * (length + 1 - filled)
            assert filled >= 2
            scored.setdefault(document, []).extend(itertools.pairwise(row[:filled]))
            rows += 1
    for document, pairs in scored.items():
        text = [DOC, *(1000 * document + j for j in range(SIZES[document])), DOC]
        assert pairs == list(itertools.pairwise(text))
    assert sorted(scored) == windows.documents.tolist()
    assert windows.targets == sum(map(len, scored.values()))
    assert windows.bytes == sum(3 * SIZES[document] for document in scored)
    assert rows == windows.rows
    if budget is None:
        assert windows.documents.tolist() == list(range(len(SIZES)))
    else:
        assert windows.bytes <= max(budget, 3 * min(SIZES))


def test_the_sample_depends_on_the_tokens_alone_and_fills_its_budget(tokens: TokenFile):
    one, other = validation_windows(tokens, 16, 4, 600), validation_windows(tokens, 99, 1, 600)
    assert one.documents.tolist() == other.documents.tolist()
    assert one.bytes == other.bytes > 500
    left_out = min(3 * size for number, size in enumerate(SIZES) if number not in one.documents)
    assert one.bytes + left_out > 600
    exactly = validation_windows(tokens, 16, 4, one.bytes)
    assert exactly.documents.tolist() == one.documents.tolist()


def test_a_budget_below_every_document_takes_the_shortest(tokens: TokenFile):
    assert validation_windows(tokens, 16, 4, 1).documents.tolist() == [0]


def test_batches_can_be_had_in_any_order_and_again(tokens: TokenFile):
    windows = validation_windows(tokens, 16, 4, None)
    listed = list(windows)
    assert len(listed) == len(windows) == -(-windows.rows // 4)
    assert torch.equal(windows.batch(3)["tokens"], listed[3]["tokens"])
    assert [len(batch["tokens"]) for batch in listed[:-1]] == [4] * (len(listed) - 1)
    with pytest.raises(IndexError):
        windows.batch(len(windows))


def test_impossible_settings_are_refused(tokens: TokenFile):
    with pytest.raises(ConfigError, match="at least 1"):
        validation_windows(tokens, 0, 4)


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:300"])
def test_bytes_of_text_are_exact_for_any_tokenizer(tokenizer: str):
    texts = [f"Dokument {number} über naïve Leser — 漢字 {number * number}.\n" * 3 for number in range(200)]
    data = prepare(MemoryCorpus(texts), tokenizer, quiet=True)
    windows = validation_windows(data.validation, 32, 8, None)
    assert windows.bytes == sum(
        len(data.tokenizer.decode(data.validation.document(number)).encode()) for number in windows.documents
    )
    assert windows.bytes == sum(len(text.encode()) for text in texts) - data.train.total_bytes
