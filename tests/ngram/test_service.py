"""The service as clients see it: fields of the public API, exactness, refusals; and several indexes behind one object."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time

import numpy as np
import pytest

from oracles.ngrams import Counter
from orrery import ngram
from orrery.core.errors import ConfigError, DataError, StorageError
from orrery.ngram import http as server_module
from orrery.ngram.http import Background, Server, is_loopback
from orrery.ngram.remote import Remote
from orrery.ngram.service import Limits, Refused, Service, thinned
from orrery.ngram.union import Union

TEXTS = ["import numpy as np\nimport os\n" * 3, "import numpy as xp", "from numpy import array\nimport numpy as np"]
BIG = [np.random.default_rng(5).integers(0, 6, size).astype(np.uint16) for size in (90, 1, 200, 40, 77)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("served")
    for name, texts in (("text", TEXTS), ("text-1", TEXTS[:1]), ("text-2", TEXTS[1:])):
        ngram.build(texts, path / name, tokenizer="bytes", quiet=True)
    for name, documents, shards in (("whole", BIG, 1), ("first", BIG[:2], 2), ("rest", BIG[2:], 2)):
        ngram.build(documents, path / name, vocab_size=6, shards=shards, quiet=True)
    return path


@pytest.fixture(scope="module")
def url(folder):
    limits = Limits(tokens=300, batch=50, clauses=3, terms=4, documents=5, body_bytes=20_000)
    names = ("text", "text-2", "whole", "first", "rest")
    with Background(Service({name: folder / name for name in names}, limits)) as running:
        yield running.url


def post(url, body, path="/", **headers):
    host = url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=10)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, data, {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    found = response.status, json.loads(response.read())
    connection.close()
    return found


def ask(url, query_type, index="text", **fields):
    status, found = post(url, {"index": index, "query_type": query_type, **fields})
    assert status == 200, found
    assert found.pop("latency") >= 0
    return found


def letters(text):
    return {"token_ids": list(text.encode()), "tokens": list(text)}


def test_the_public_apis_requests_and_response_fields(url):
    # counts by hand: "numpy as " stands 3 times in the first text and once in each of the others
    assert ask(url, "count", query="import numpy") == {"count": 5, "approx": False, **letters("import numpy")}
    assert ask(url, "count", query="")["count"] == sum(map(len, TEXTS)) + len(TEXTS)
    assert ask(url, "prob", query="numpy as n") == {"prob": 0.8, "prompt_cnt": 5, "cont_cnt": 4, **letters("numpy as n")}
    assert ask(url, "prob", query="qqq")["prob"] == -1.0
    after = {"110": {"token": "n", "prob": 0.8, "cont_cnt": 4}, "120": {"token": "x", "prob": 0.2, "cont_cnt": 1}}
    assert ask(url, "ntd", query="numpy as ", max_support=10) == {
        "prompt_cnt": 5, "result_by_token_id": after, "approx": False, **letters("numpy as "),
    }  # fmt: skip
    assert ask(url, "infgram_prob", query="qnumpy as n") == {
        "prob": 0.8, "prompt_cnt": 5, "cont_cnt": 4, "suffix_len": 9, "longest_suffix": "numpy as ", "sparse": False,
        **letters("qnumpy as n"),
    }  # fmt: skip
    found = ask(url, "infgram_ntd", query="qnumpy as ")
    assert (found["result_by_token_id"], found["suffix_len"], found["longest_suffix"]) == (after, 9, "numpy as ")
    assert ask(url, "count", query_ids=list(b"import numpy"))["count"] == 5
    assert ask(url, "ntd", query="never seen")["result_by_token_id"] == {}


def test_a_distribution_is_written_as_json_would_write_it(folder):
    service = Service({"text": folder / "text"})
    for query in ("", "import numpy as ", "np\n"):
        request = {"index": "text", "query_type": "infgram_ntd", "query": query}
        answer = service.answer(request)
        found = answer["result_by_token_id"]
        assert len(found) > 0 and sum(entry["cont_cnt"] for entry in found.values()) == answer["prompt_cnt"]
        plain = {key: dict(entry) for key, entry in found.items()}
        assert json.loads(found.json()) == plain == found
        sent = json.loads(service.respond(request))
        assert sent.pop("latency") >= 0 and answer.pop("latency") >= 0
        assert sent == {**answer, "result_by_token_id": plain}


def test_a_distribution_is_estimated_where_the_client_asks_for_it(url):
    """By hand: eleven occurrences in stretches of four, of which the one in the middle speaks for the others."""
    ids, counts = thinned(np.array([3, 5, 8, 9]), np.array([4, 1, 2, 4]), 3)  # 3333 5889 999: looked at are 3, 8 (place 6), 9
    assert (ids.tolist(), counts.tolist()) == ([3, 8, 9], [4, 4, 3])
    whole = ask(url, "ntd", "whole", query_ids=[2])
    assert whole["approx"] is False and whole["prompt_cnt"] > 10
    for most in (1, 3, 10):
        found = ask(url, "ntd", "whole", query_ids=[2], max_support=most)
        entries = found["result_by_token_id"]
        assert (found["approx"], found["prompt_cnt"]) == (True, whole["prompt_cnt"])
        assert 1 <= len(entries) <= most and set(entries) <= set(whole["result_by_token_id"])
        assert sum(entry["cont_cnt"] for entry in entries.values()) == whole["prompt_cnt"]
        assert sum(entry["prob"] for entry in entries.values()) == pytest.approx(1)
    assert ask(url, "infgram_ntd", "whole", query_ids=[2], max_support=1000)["result_by_token_id"] == whole["result_by_token_id"]


def test_documents_as_the_public_api_gives_them(url):
    found = ask(url, "find", query="numpy as ")
    (low, high), = found["segment_by_shard"]
    assert found["cnt"] == high - low == 5
    documents = [ask(url, "get_doc_by_rank", query="numpy as ", s=0, rank=rank) for rank in range(low, high)]
    assert sorted(d["doc_ix"] for d in documents) == [0, 0, 0, 1, 2]
    for one in documents:
        text = TEXTS[one["doc_ix"]]
        assert bytes(one["token_ids"]).decode() == "".join(part for part, _ in one["spans"]) == text
        assert text[one["needle_offset"] :].startswith("numpy as ") and one["doc_len"] == one["disp_len"] == len(text)
        assert [part for part, label in one["spans"] if label == "0"] == ["numpy as "] * text.count("numpy as ")
        assert json.loads(one["metadata"])["name"] == str(one["doc_ix"])
    short = ask(url, "get_doc_by_rank", query="numpy as ", s=0, rank=low, max_disp_len=20)
    assert short["disp_len"] == 20 and bytes(short["token_ids"])[short["needle_offset"] :].startswith(b"numpy as ")
    found = ask(url, "search_docs", query="xp", maxnum=3)
    assert (found["cnt"], found["idxs"], [d["doc_ix"] for d in found["documents"]]) == (1, [0], [1])
    assert found["documents"][0]["spans"] == [["import numpy as ", None], ["xp", "0"]]
    found = ask(url, "search_docs", query="", maxnum=2)
    assert (found["cnt"], [d["doc_ix"] for d in found["documents"]]) == (ask(url, "count", query="")["count"], [0, 1])
    assert found["documents"][1]["spans"] == [[TEXTS[1], None]]


def test_conjunctions(url):
    found = ask(url, "count", query="array OR xp AND numpy as", max_diff_tokens=40)
    assert (found["count"], found["approx"]) == (2, False)
    assert found["tokens"] == [[list("array"), list("xp")], [list("numpy as")]]
    assert ask(url, "count", query="array AND xp")["count"] == 0
    assert ask(url, "count", query="array AND numpy", max_diff_tokens=5)["count"] == 0
    pointers = ask(url, "find_cnf", query="array AND numpy as")
    assert (pointers["cnt"], pointers["approx"]) == (1, False)
    document = ask(url, "get_doc_by_ptr", query="array AND numpy as", s=0, ptr=pointers["ptrs_by_shard"][0][0])
    assert document["doc_ix"] == 2 and [label for _, label in document["spans"] if label] == ["0", "1"]
    assert [d["doc_ix"] for d in ask(url, "search_docs", query="os AND np", maxnum=5)["documents"]] == [0]
    assert ask(url, "count", query="np AND import", max_clause_freq=2)["approx"] is True
    clauses = [[list(b"array")], [list(b"numpy as")]]
    assert ask(url, "count", query_ids=clauses, max_diff_tokens=40)["count"] == 1


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        (b"{", 400, "not JSON"),
        (b"[" * 100_00, 400, "not JSON"),
        ([1], 400, "JSON object"),
        ({"query_type": "count", "query": "a"}, 400, "'index'"),
        ({"index": "txt", "query_type": "count", "query": "a"}, 404, "'text'"),
        ({"index": "text", "query_type": "cuont", "query": "a"}, 400, "'count'"),
        ({"index": "text", "query_type": "count"}, 400, "exactly one"),
        ({"index": "text", "query_type": "count", "query": "a", "query_ids": [1]}, 400, "exactly one"),
        ({"index": "text", "query_type": "count", "query": 7}, 400, "must be text"),
        ({"index": "text", "query_type": "count", "query_ids": [1, True]}, 400, "whole number"),
        ({"index": "text", "query_type": "count", "query_ids": [-1]}, 400, "whole number"),
        ({"index": "text", "query_type": "count", "query_ids": [2**70]}, 400, "whole number"),
        ({"index": "text", "query_type": "count", "query_ids": [257]}, 400, "vocabulary"),
        ({"index": "text", "query_type": "count", "query_ids": [[[1]], 3]}, 400, "list of clauses"),
        ({"index": "text", "query_type": "count", "query_ids": [[[1]], [[]]]}, 400, "every clause"),
        ({"index": "text", "query_type": "count", "query_ids": [1] * 301}, 413, "at most 300"),
        ({"index": "text", "query_type": "count", "query_ids": [[[1]]] * 4}, 413, "at most 3 clauses"),
        ({"index": "text", "query_type": "count", "query_ids": [[[1]] * 5]}, 413, "at most 4 n-grams"),
        ({"index": "text", "query_type": "count_batch", "queries": [[1]] * 51}, 413, "at most 50"),
        ({"index": "text", "query_type": "prob", "query": ""}, 400, "empty"),
        ({"index": "text", "query_type": "prob", "query_ids": [[[1]]]}, 400, "one n-gram"),
        ({"index": "text", "query_type": "ntd", "query": "a", "max_support": 0}, 400, "max_support"),
        ({"index": "text", "query_type": "get_doc_by_rank", "query": "a", "s": 1, "rank": 0}, 400, "'s'"),
        ({"index": "text", "query_type": "get_doc_by_rank", "query": "a", "s": 0, "rank": 10**9}, 400, "'rank'"),
        ({"index": "text", "query_type": "search_docs", "query": "a", "maxnum": 6}, 400, "'maxnum'"),
        ({"index": "whole", "query_type": "count", "query": "a"}, 400, "no tokenizer"),
        (b" " * 20_001, 413, "20,000"),
    ],
)
def test_refusals_are_a_status_and_a_sentence(url, request_, status, words):
    found = post(url, request_)
    assert found[0] == status and words in found[1]["error"] and "\n" not in found[1]["error"]
    assert ask(url, "count", query="xp")["count"] == 1


def raw(url, data, until=b"}"):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as line:
        line.sendall(data)
        found = b""
        while until not in found:
            piece = line.recv(1 << 16)
            if not piece:
                break
            found += piece
    return found


BODY = b'{"index":"text","query_type":"count","query":"xp"}'


def test_pipelined_split_and_strange_requests(url):
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\n"
    length = b"Content-Length: %d\r\n" % len(BODY)
    whole = head + length + b"\r\n" + BODY
    last = whole.replace(length, length + b"Connection: close\r\n")
    assert raw(url, whole * 3 + last, b"never").count(b'"count":1') == 4
    slow = BODY.replace(b'"count"', b'"ntd"')
    mixed = head + b"Content-Length: %d\r\n\r\n" % len(slow) + slow + last
    answers = raw(url, mixed, b"never")
    assert answers.index(b"result_by_token_id") < answers.index(b'"count":1')
    expecting = raw(url, head + length + b"Expect: 100-continue\r\n\r\n", b"\r\n\r\n")
    assert expecting.startswith(b"HTTP/1.1 100 Continue")
    for data, status in (
        (b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"411"),
        (head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"501"),
        (head + length + length + b"\r\n" + BODY, b"400"),
        (head + b"Content-Length: -5\r\n\r\n", b"400"),
        (head + b"Content-Length: 99999999\r\n\r\n", b"413"),
        (head + b"X: " + b"y" * 20_000, b"431"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"403"),
        (b"GET / HTTP/1.1\r\n\r\n", b"403"),
        (b"GET /secret HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (b"DELETE / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"405"),
    ):
        assert raw(url, data).startswith(b"HTTP/1.1 " + status), data[:60]
    listed = raw(url, b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", b"]")
    assert json.loads(listed.split(b"\r\n\r\n")[1]) == ["text", "text-2", "whole", "first", "rest"]


def test_slow_answers_full_queues_and_silent_senders(folder, monkeypatch):
    service = Service({"text": folder / "text"}, Limits(seconds=0.3, threads=1, waiting=3, per_sender=2, connections=6))
    go = threading.Event()
    served = service.served["text"].index
    monkeypatch.setattr(served, "next", lambda ids: go.wait(10) and type(served).next(served, ids))
    monkeypatch.setattr(server_module, "_SENDING", 0.3)
    with Background(service) as running:
        statuses = []

        def slow():
            found = post(running.url, {"index": "text", "query_type": "ntd", "query": "a"})
            statuses.append((found[0], found[1]["error"]))

        threads = [threading.Thread(target=slow) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert ask(running.url, "count", query="xp")["count"] == 1  # quick ones do not wait
        for thread in threads:
            thread.join()
        assert sorted(status for status, _ in statuses) == [429, 503, 503]
        assert any("longer than 0.3 seconds" in sentence for _, sentence in statuses)
        go.set()
        until = time.monotonic() + 5
        while running.server._waiting and time.monotonic() < until:
            time.sleep(0.02)
        assert ask(running.url, "ntd", query="numpy as ")["prompt_cnt"] == 5  # and the places are free again
        host, port = running.url.removeprefix("http://").split(":")
        silent = [socket.create_connection((host, int(port)), timeout=5) for _ in range(6)]
        time.sleep(0.1)
        assert post(running.url, {"index": "text"})[0] == 503
        silent[0].sendall(b"POST / HT")
        assert [line.recv(10) for line in silent] == [b""] * 6  # nobody sent a request in time
        assert ask(running.url, "count", query="xp")["count"] == 1
        for line in silent:
            line.close()


def test_a_rebuilt_index_is_taken_up_and_the_old_one_answers_until_then(tmp_path):
    ngram.build(["aaab"], tmp_path / "i", tokenizer="bytes", quiet=True)
    service = Service({"i": tmp_path / "i"})
    ask_count = {"index": "i", "query_type": "count", "query": "a"}
    old = service.served["i"].index
    ngram.build(["aab" * 50, "a"], tmp_path / "i", tokenizer="bytes", quiet=True)
    assert service.answer(ask_count)["count"] == 3
    assert [d.name for d in old.documents([97])] == ["0"]  # names and texts of the old one, too
    service.refresh()
    assert service.answer(ask_count)["count"] == 101
    with pytest.raises(Refused) as refused:
        service.answer({**ask_count, "index": "j"})
    assert refused.value.status == 404


def same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def test_parts_here_and_behind_services_answer_like_the_whole(folder, url):
    whole = ngram.open(folder / "whole")
    union = Union([ngram.open(folder / "first"), Remote(url + "/rest")])
    far = Remote(url + "/whole")
    counter = Counter([d.tolist() for d in BIG], 6, 6)
    rng = np.random.default_rng(1)
    assert (union.tokens, union.documents_total) == (whole.tokens, whole.documents_total) == (counter.tokens, len(BIG))
    queries = [rng.integers(0, 7, size).tolist() for size in (0, 1, 1, 2, 2, 3, 3, 4, 5, 9)]
    queries += [BIG[2][k : k + size].tolist() for k, size in ((3, 4), (50, 6), (10, 12))] + [BIG[0][20:60].tolist()]
    for many in (union, far):
        assert many.count_batch(queries).tolist() == [counter.count(q) for q in queries]
        for query in queries:
            assert many.count(query) == counter.count(query)
            same(many.next(query), whole.next(query))
            same(many.inf_next(query), whole.inf_next(query))
            for token in range(7):
                assert many.inf_prob_info(query, token) == whole.inf_prob_info(query, token), (query, token)
                found, want = many.prob_info(query, token), whole.prob_info(query, token)
                assert (found.hits, found.total) == (want.hits, want.total)
    text = np.concatenate([BIG[2][5:30], rng.integers(0, 6, 20), BIG[0][:30]]).astype(np.int64)
    same(union.score(text), whole.score(text))
    for found, want in zip(union.attribute(text, 6), whole.attribute(text, 6), strict=True):
        assert found[:3] == want[:3]
        assert [d[:1] + d[2:6] for d in found.documents] == [d[:1] + d[2:6] for d in want.documents]  # but for names
    for clauses in ([[[0, 1]], [[2, 3], [4]]], [[[5]], [[0]]], [[[0, 1, 2]], [[3, 3]], [[1]]]):
        for window in (1, 7, 50):
            assert union.count_cnf(clauses, window) == whole.count_cnf(clauses, window), clauses
    for number in (0, 1, 2, 4):
        same(union.document(number), whole.document(number)._replace(name=union.document(number).name))
    assert len(union.documents([1], 3)) == 3
    assert not union.count_cnf([[[5]], [[0]]], 9, cap=4).exact
    union.close()
    far.close()
    assert far.count([]) == whole.tokens  # a closed one opens again
    far.close()


def test_what_a_union_and_a_remote_refuse(folder, url):
    with pytest.raises(DataError, match="different tokenizers"):
        Union([ngram.open(folder / "whole"), ngram.open(folder / "text")])
    with pytest.raises(ConfigError, match="at least one"):
        Union([])
    with pytest.raises(DataError, match="no index 'wohle'"):
        Remote(url + "/wohle")
    with pytest.raises(ConfigError, match="no address"):
        Remote("http://localhost:99")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(StorageError, match="nobody answers"):
            Remote(f"http://127.0.0.1:{closed.getsockname()[1]}/x")
    remote = Remote(url + "/whole")
    with pytest.raises(DataError, match="outside the index's vocabulary"):
        remote.count([9])
    remote.close()
    with pytest.raises(ConfigError, match="cannot listen"):
        Server(Service({"t": folder / "text"}), port=int(url.rsplit(":", 1)[1]))
    assert is_loopback("127.0.0.5") and is_loopback("::1") and not is_loopback("0.0.0.0")
