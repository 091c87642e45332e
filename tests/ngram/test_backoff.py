"""Back-off models over words beside KenLM's recorded figures, ARPA files, Good-Turing and stupid back-off by hand.

`kenlm.json` holds what KenLM's programs gave (the commands stand in it): `log10` is `kenlm.Model.score`, `perplexity` the
"Perplexity including OOVs" of `query` over the sentences that are not empty.
"""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from tests.oracles.backoff import good_turing, stupid_backoff

from orrery.core.errors import CorruptionError, DataError, StorageError
from orrery.ngram.arpa import read_arpa, write_arpa
from orrery.ngram.counts import BackoffModel

RECORD = json.loads((Path(__file__).parent / "kenlm.json").read_text(encoding="utf-8"))
HELD = RECORD["held"]


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("case", RECORD["cases"], ids=lambda case: case["name"])
def test_scores_and_perplexity_equal_kenlms(case, backend):
    model = BackoffModel.fit_sentences(case["text"], case["order"], backend=backend)
    assert model.score_sentences(HELD) == pytest.approx(case["log10"], abs=2e-5)
    assert model.score_sentences(HELD, begin=False, end=False) == pytest.approx(case["log10_without_marks"], abs=2e-5)
    assert model.perplexity([line for line in HELD if line]) == pytest.approx(case["perplexity"], rel=1e-5)
    assert model.facts["fallback_orders"] == ([] if case["name"] == "usual" else [1, 3, 4])


def test_sentences_split_together_score_as_each_of_them_does():
    model = BackoffModel.fit_sentences(["a b c", "b c a b", "c"], 3)
    lines = ["a b", "", "  b\tc \u2003 a\n", "unknown a", "\0", "a \0 b \0", "<s> a </s>", "c"]
    for frame in ({}, {"begin": False}, {"end": False}, {"begin": False, "end": False}):
        singly = [model.score_sentences([line.split()], **frame)[0] for line in lines]
        assert model.score_sentences(lines, **frame) == pytest.approx(singly)
        kept = [line for line in lines if "\0" not in line]
        assert model.score_sentences(kept, **frame) == pytest.approx([model.score_sentences([k.split()], **frame)[0] for k in kept])
    assert model.score_sentences([]).tolist() == []


def test_kenlms_file_is_read_and_gives_its_scores(tmp_path):
    case = RECORD["cases"][1]
    (tmp_path / "kenlm.arpa").write_text(case["arpa"])
    model = read_arpa(tmp_path / "kenlm.arpa")
    assert model.score_sentences(HELD) == pytest.approx(case["log10"], abs=2e-5)
    assert model.sizes == BackoffModel.fit_sentences(case["text"], case["order"]).sizes


@pytest.mark.parametrize("method", ["kneser-ney", "good-turing", "stupid-backoff"])
@pytest.mark.parametrize("order", [1, 3])
def test_files_written_are_read_back(method, order, tmp_path):
    model = BackoffModel.fit_sentences(RECORD["cases"][0]["text"], order, method=method)
    for name in ("model.arpa", "model.arpa.gz"):
        again = read_arpa(write_arpa(model, tmp_path / name))
        assert again.words == model.words and again.sizes == model.sizes
        assert again.score_sentences(HELD) == pytest.approx(model.score_sentences(HELD), abs=2e-5)
    assert gzip.decompress((tmp_path / "model.arpa.gz").read_bytes()) == (tmp_path / "model.arpa").read_bytes()


def test_a_model_over_ids_is_written_with_marks(tmp_path):
    """The document's mark begins as <s> and ends as </s>; read as words, the file gives every document its probability."""
    stream = np.array([9, *np.random.default_rng(0).integers(0, 9, 400)])
    stream[::7] = 9
    model = BackoffModel.fit(stream, 10, 3, document=9)
    again = read_arpa(write_arpa(model, tmp_path / "ids.arpa", end="</s>"))
    for document in np.split(stream, np.flatnonzero(stream == 9))[1:20]:
        found = again.score_sentences([[str(token) for token in document[1:]]])[0]
        assert found == pytest.approx(model.log_probabilities([*document, 9])[1:].sum() / np.log(10), abs=1e-5)
    assert "<unk>" in again.words


def test_pruned_files_back_off_to_suffixes_that_they_lack(tmp_path):
    """`a b c` without `b c` and `b c`'s place taken by backing off: log10 P(c | b) = -0.3 + -1."""
    (tmp_path / "pruned.arpa").write_text(
        "\\data\\\nngram 1=5\nngram 2=1\nngram 3=1\n\n\\1-grams:\n-2\t<unk>\n-1\ta\t-0.1\n-1\tb\t-0.3\n-1\tc\t-0.2\n-1\t</s>\n\n"
        "\\2-grams:\n-0.5\ta b\t-0.7\n\n\\3-grams:\n-0.05 a b c\n\n\\end\\\n"
    )
    model = read_arpa(tmp_path / "pruned.arpa")
    assert model.sizes == [5, 2, 1] and model.document is None
    assert model.score_sentences(["a b c", "b c a", "x b c"], end=False) == pytest.approx(
        [-1 - 0.5 - 0.05, -1 - 1.3 - 1.2, -2 - 1 - 1.3], abs=1e-6
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ngram 2=", "ngram 3="), "'ngram 2=...' belongs"),
        (("\\2-grams:", "\\4-grams:"), "2-grams: belongs"),
        (("\\end\\", ""), "ends before"),
        (("the old", "the zzz"), "no unigram"),
        (("\\data\\", "data"), "ends before"),
        (("\tthe cat", "\tthe cat cat cat"), "columns"),
    ],
)
def test_damaged_files_are_refused(change, message, tmp_path):
    text = "\\data\\\nngram 1=3\nngram 2=2\n\n\\1-grams:\n-1\tthe\t-1\n-1\tcat\n-1\told\n\n\\2-grams:\n-1\tthe cat\n-1\tthe old\n\n\\end\\\n"
    (tmp_path / "x.arpa").write_text(text)
    assert read_arpa(tmp_path / "x.arpa").sizes == [3, 2]
    (tmp_path / "x.arpa").write_text(text.replace(*change))
    with pytest.raises(CorruptionError, match=message):
        read_arpa(tmp_path / "x.arpa")


def test_misuse_is_named(tmp_path):
    with pytest.raises(StorageError, match="cannot read"):
        read_arpa(tmp_path / "absent.arpa")
    with pytest.raises(DataError, match="'<s>'"):
        BackoffModel.fit_sentences(["a <s> b"])
    with pytest.raises(DataError, match="no sentence"):
        BackoffModel.fit_sentences([])
    ids = BackoffModel.fit(np.arange(5), 5, 2)
    with pytest.raises(DataError, match="no words"):
        ids.score_sentences(["a"])
    with pytest.raises(DataError, match="white space"):
        write_arpa(ids, tmp_path / "x", labels=["a", "b", "c d", "e", "f"])
    with pytest.raises(DataError, match="4 labels"):
        write_arpa(ids, tmp_path / "x", labels=["a", "b", "c", "d"])


@pytest.mark.parametrize(("method", "oracle"), [("good-turing", good_turing), ("stupid-backoff", stupid_backoff)])
@pytest.mark.parametrize("size", [30, 600, 4000])
def test_other_methods_equal_their_oracles(method, oracle, size):
    """Zipf's words, so that counts of counts fall as in text; 30 tokens are too few for Good-Turing's line."""
    rng = np.random.default_rng(size)
    stream = np.minimum(rng.zipf(1.3, size) - 1, 399)
    model = BackoffModel.fit(stream, 400, 3, method=method, dtype=np.float64)
    expected = oracle(stream.tolist(), 400, 3)
    text = np.minimum(rng.zipf(1.3, 60) - 1, 399).tolist()
    found = np.exp(model.log_probabilities(text))
    for t, token in enumerate(text):
        assert found[t] == pytest.approx(expected(token, tuple(text[max(0, t - 2) : t])), rel=1e-9)
    if method == "good-turing":
        assert model.distribution(text[-2:]).sum() == pytest.approx(1, abs=1e-9)
        assert (model.facts["fallback_orders"] == []) == (size > 30)
