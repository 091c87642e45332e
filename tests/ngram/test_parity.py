"""The same answers as the `infini-gram` package on real text: 2,000 random queries.

The package answers in a process of its own, so that it can end no other: by default its engine reads ahead, in places to
which a binary search may go next, also behind the end of a small index, where nothing is mapped (signal 11). Without reading
ahead, or with its files read into memory, it answers everything. The files are as its own `indexing.py` writes them.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from orrery import ngram

THEIRS = """
import argparse, contextlib, io, json, os, sys
from infini_gram import indexing
from infini_gram.engine import InfiniGramEngine
folder, vocabulary, here = sys.argv[1], int(sys.argv[2]), os.getcwd()
where = {"save_dir": folder, "temp_dir": folder, "shards": 1, "workers": 1, "worker_id": 0}
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    indexing.build_sa(argparse.Namespace(**where, mem=1, cpus=1, token_width=2))
os.chdir(here)
no = {"ds_prefetch_depth": 0, "sa_prefetch_depth": 0, "od_prefetch_depth": 0}
engine = InfiniGramEngine(index_dir=folder, eos_token_id=vocabulary, vocab_size=0xFFFF, **no)
answers = []
for number, (context, token) in enumerate(json.load(open(folder + "/queries.json"))):
    one, other = engine.prob(context, token), engine.infgram_prob(context, token)
    row = [engine.count([*context, token])["count"], one["cont_cnt"], one["prompt_cnt"]]
    row += [other["cont_cnt"], other["prompt_cnt"], other["suffix_len"]]
    if number % 10 == 0:
        found = engine.infgram_ntd(context)
        tokens = sorted((int(i), entry["cont_cnt"]) for i, entry in found["result_by_token_id"].items())
        row += [found["suffix_len"], None if found["approx"] else tokens]
    answers.append(row)
json.dump(answers, open(folder + "/answers.json", "w"))
"""


def questions(documents, stream):
    rng = np.random.default_rng(0)
    for number in range(2000):
        document = documents[rng.integers(len(documents))]
        length = int(rng.integers(1, 7))
        start = int(rng.integers(0, len(document) - length))
        *context, token = document[start : start + length + 1].tolist()
        token = token if number % 2 else int(rng.choice(stream))
        if number % 5 == 0:
            context[0] = int(rng.choice(stream))
        yield context, token


def write_tokens(folder, documents):
    """What infini-gram's `tokenize` writes: 0xFFFF before every document, and the byte that each begins at."""
    folder.mkdir()
    mark = np.array([0xFFFF], dtype=np.uint16)
    np.concatenate([part for document in documents for part in (mark, document)]).tofile(folder / "tokenized.0")
    starts = np.cumsum([0, *(len(document) + 1 for document in documents)])[:-1]
    (2 * starts).astype(np.uint64).tofile(folder / "offset.0")


def asked(folder, vocabulary):
    """infini-gram's answers."""
    command = [sys.executable, "-c", THEIRS, str(folder), str(vocabulary)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    if done.returncode < 0:
        pytest.fail(f"infini-gram's own process was ended by signal {-done.returncode}, on files as its indexer writes them")
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "answers.json").read_text())


@pytest.mark.skipif(importlib.util.find_spec("infini_gram") is None, reason="infini-gram is not installed")
def test_two_thousand_queries_equal_infini_gram(tmp_path):
    text = "\n\n".join(inspect.getsource(module) for module in (argparse, json, random, os, inspect))
    words = text.replace("(", " ( ").replace(".", " . ").split(" ")
    names = {word: number for number, word in enumerate(dict.fromkeys(words))}
    stream = np.array([names[word] for word in words], dtype=np.uint16)
    documents = np.array_split(stream, 40)
    index = ngram.build(documents, tmp_path / "ours", vocab_size=len(names), quiet=True)
    theirs = tmp_path / "theirs"
    write_tokens(theirs, documents)
    queries = list(questions(documents, stream))
    (theirs / "queries.json").write_text(json.dumps(queries))
    for (context, token), row in zip(queries, asked(theirs, len(names)), strict=True):
        one, best = index.prob_info(context, token), index.inf_prob_info(context, token)
        assert [index.count([*context, token]), one.hits, one.total, best.hits, best.total, best.n] == row[:6]
        if len(row) > 6:
            following = index.inf_next(context)
            assert following.n == row[6]
            found = [list(pair) for pair in zip(following.ids.tolist(), following.counts.tolist(), strict=True)]
            assert row[7] is None or found == row[7]
