"""The same answers as the `infini-gram` package on real text: 2,000 random queries."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import os
import random

import numpy as np
import pytest

from orrery import ngram


def test_two_thousand_queries_equal_infini_gram(tmp_path):
    indexing = pytest.importorskip("infini_gram.indexing")
    from infini_gram.engine import InfiniGramEngine

    text = "\n\n".join(inspect.getsource(module) for module in (argparse, json, random, os, inspect))
    words = text.replace("(", " ( ").replace(".", " . ").split(" ")
    names = {word: number for number, word in enumerate(dict.fromkeys(words))}
    stream = np.array([names[word] for word in words], dtype=np.uint16)
    documents = np.array_split(stream, 40)
    index = ngram.build(documents, tmp_path / "ours", vocab_size=len(names), quiet=True)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    np.concatenate([part for d in documents for part in (np.array([0xFFFF], np.uint16), d)]).tofile(theirs / "tokenized.0")
    starts = np.cumsum([0, *(len(d) + 1 for d in documents)])[:-1]
    (2 * starts).astype(np.uint64).tofile(theirs / "offset.0")
    here = os.getcwd()
    where = {"save_dir": str(theirs), "temp_dir": str(theirs), "shards": 1, "workers": 1, "worker_id": 0}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            indexing.build_sa(argparse.Namespace(**where, mem=1, cpus=1, token_width=2))
        finally:
            os.chdir(here)
    engine = InfiniGramEngine(index_dir=str(theirs), eos_token_id=len(names), vocab_size=0xFFFF)
    rng = np.random.default_rng(0)
    for number in range(2000):
        document = documents[rng.integers(len(documents))]
        length = int(rng.integers(1, 7))
        start = int(rng.integers(0, len(document) - length))
        *context, token = document[start : start + length + 1].tolist()
        token = token if number % 2 else int(rng.choice(stream))
        if number % 5 == 0:
            context[0] = int(rng.choice(stream))
        assert index.count([*context, token]) == engine.count([*context, token])["count"]
        one, other = index.prob_info(context, token), engine.prob(context, token)
        assert (one.hits, one.total) == (other["cont_cnt"], other["prompt_cnt"])
        one, other = index.inf_prob_info(context, token), engine.infgram_prob(context, token)
        assert (one.hits, one.total, one.n) == (other["cont_cnt"], other["prompt_cnt"], other["suffix_len"])
        if number % 10 == 0:
            other = engine.infgram_ntd(context)
            one = index.inf_next(context)
            found = {i: entry["cont_cnt"] for i, entry in other["result_by_token_id"].items()}
            assert other["approx"] or dict(zip(one.ids.tolist(), one.counts.tolist(), strict=True)) == found
            assert one.n == other["suffix_len"]
