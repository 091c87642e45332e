"""Tokenizers: every text comes back, streams equal whole decodings, marks cannot be forged, files are checked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orrery.core.errors import CorruptionError, DataError, StorageError
from orrery.data import MemoryCorpus, build_tokenizer, dataset, load_tokenizer, tokenizers
from orrery.data.tokenizer_files import open_tokenizer_file
from orrery.data.tokenizers import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    LibraryTokenizer,
    Tokenizer,
    UnigramTokenizer,
    iter_decoded,
)

TEXTS = [
    f"the quick brown fox number {n} jumps over the lazy dog; naïve façade {n * n} 漢字 \U0001f389\n" for n in range(60)
]
LIBRARY = {"bpe": BPETokenizer, "unigram": UnigramTokenizer}


@pytest.fixture(scope="module")
def trained() -> dict[str, Tokenizer]:
    return {
        "bytes": ByteTokenizer(),
        "chars": CharTokenizer.build("", TEXTS),
        "bpe": BPETokenizer.build("400", TEXTS),
        "unigram": UnigramTokenizer.build("400", TEXTS),
    }


ALL = ("bytes", "chars", "bpe", "unigram")
LOSSLESS = ("bytes", "bpe", "unigram")


@pytest.mark.parametrize("kind", LOSSLESS)
@given(text=st.text(max_size=60))
def test_every_text_comes_back(trained: dict[str, Tokenizer], kind: str, text: str):
    tokenizer = trained[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.lossless
    assert tokenizer.decode(ids) == text
    assert not len(ids) or int(ids.max()) < tokenizer.vocab_size
    assert tokenizer.doc_id not in ids


MARATHI = "सनातनवाद्यांनी व प्रतिगाम्यांनी समाज रसातळाला नेला असताना"
PERSIAN = "می\u200cخواهم کتاب\u200cها را بخوانم"


@pytest.mark.parametrize("kind", LIBRARY)
@pytest.mark.parametrize("text", [MARATHI, PERSIAN], ids=["marathi", "persian"])
def test_vowels_that_are_marks_and_joiners_belong_to_their_word(kind: str, text: str):
    tokenizer = LIBRARY[kind].build("600", [text] * 50)
    pieces = tokenizer._inner.pre_tokenizer.pre_tokenize_str(text)
    assert [text[slice(*place)].strip() for _, place in pieces] == text.split()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    if kind == "bpe":
        assert len(tokenizer.encode(text)) == len(text.split()), "words are learnt whole"
    begins, ends = BPETokenizer.build("330", [text] * 50).word_edges()
    ids = BPETokenizer.build("330", [text] * 50).encode(text).astype(int)
    joined = sum(bool(ends[a] and begins[b]) for a, b in zip(ids, ids[1:], strict=False))
    assert joined == len(ids) - len(text.split()), "whole words are hidden whole"


@given(text=st.text(alphabet=sorted(set("".join(TEXTS))), max_size=60))
def test_characters_of_the_alphabet_come_back_and_others_are_unknown(trained: dict[str, Tokenizer], text: str):
    tokenizer = trained["chars"]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) == len(text)
    assert tokenizer.encode("aЖb").tolist()[1] == tokenizer.unknown_id
    assert tokenizer.decode(tokenizer.encode("aЖb")) == "a\ufffdb"
    assert not tokenizer.lossless


@pytest.mark.parametrize("kind", ALL)
@given(data=st.data())
def test_streams_equal_whole_decodings_for_any_ids_and_cuts(
    trained: dict[str, Tokenizer], kind: str, data: st.DataObject
):
    tokenizer = trained[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=4)))
    whole = tokenizer.decode(ids)
    stream = tokenizer.stream()
    pushed = [stream.push(ids[start:stop]) for start, stop in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    assert "".join(pushed) + stream.finish() == whole
    assert "".join(iter_decoded(tokenizer, ids)) == whole


@given(st.lists(st.integers(0, 258), max_size=30))
def test_bytes_decode_as_python_does(ids: list[int]):
    data = b"".join(b"" if i == 256 else b"\xef\xbf\xbd" if i > 256 else bytes([i]) for i in ids)
    assert ByteTokenizer().decode(ids) == data.decode("utf-8", "replace")


def test_half_a_character_is_kept_back_until_it_is_whole(trained: dict[str, Tokenizer]):
    stream = trained["bytes"].stream()
    assert [stream.push([value]) for value in "漢!".encode()] == ["", "", "漢", "!"]
    assert stream.push([0xE6]) == ""
    assert stream.finish() == "\ufffd"


@pytest.mark.parametrize("kind", ALL)
def test_vocabulary_type_and_batches(trained: dict[str, Tokenizer], kind: str):
    tokenizer = trained[kind]
    assert tokenizer.doc_id == tokenizer.vocab_size - 1
    ids = tokenizer.encode(TEXTS[1])
    assert (
        tokenizer.decode(ids)
        == tokenizer.decode(ids.tolist())
        == tokenizer.decode(torch.from_numpy(ids.astype("i8")))
        == TEXTS[1]
    )
    batch = tokenizer.encode_batch(TEXTS[:3])
    for text, ids in zip(TEXTS, batch, strict=False):
        assert np.array_equal(ids, tokenizer.encode(text))
        assert ids.dtype == tokenizer.dtype == np.dtype("u1" if kind == "chars" else "u2")


def test_known_encodings(trained: dict[str, Tokenizer]):
    assert trained["bytes"].encode("aü").tolist() == [97, 195, 188]
    assert (trained["bytes"].vocab_size, trained["bpe"].vocab_size, trained["unigram"].vocab_size) == (257, 400, 317)
    alphabet = sorted(set("".join(TEXTS)))
    assert trained["chars"].encode("fox").tolist() == [alphabet.index(char) for char in "fox"]
    assert len(trained["bpe"].encode(TEXTS[0])) < len(TEXTS[0].encode()) / 2


def test_chars_keeps_the_most_frequent():
    tokenizer = CharTokenizer.build("5", ["aaaabbbccd" * 20_000])
    assert (tokenizer.alphabet, tokenizer.vocab_size, tokenizer.name) == ("abc", 5, "chars:5")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_training_gives_the_same_tokenizer_in_every_process(trained: dict[str, Tokenizer], kind: str):
    code = (
        "import json,sys; from orrery.data import tokenizers as t; texts = json.load(sys.stdin);"
        f"print(t.{LIBRARY[kind].__name__}.build('400', texts).hash)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(TEXTS),
        capture_output=True,
        text=True,
        check=True,
        env=_environment(),
    )
    assert run.stdout.strip() == trained[kind].hash
    assert LIBRARY[kind].build("400", TEXTS).hash == trained[kind].hash


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src"), "PYTHONHASHSEED": "77"}


@pytest.mark.parametrize("kind", ALL)
def test_saved_and_loaded_is_the_same(trained: dict[str, Tokenizer], kind: str, tmp_path: Path):
    trained[kind].save(tmp_path / "a b")
    loaded = load_tokenizer(tmp_path / "a b")
    assert (loaded.hash, loaded.name, loaded.vocab_size, loaded.doc_id) == (
        *(trained[kind].hash, trained[kind].name),
        *(trained[kind].vocab_size, trained[kind].doc_id),
    )
    assert np.array_equal(loaded.encode(TEXTS[5]), trained[kind].encode(TEXTS[5]))
    assert open_tokenizer_file(tmp_path / "a b").hash == loaded.hash


@pytest.mark.parametrize("kind", ["bytes", "chars", "bpe"])
def test_any_flipped_byte_of_a_saved_tokenizer_is_found(trained: dict[str, Tokenizer], kind: str, tmp_path: Path):
    trained[kind].save(tmp_path)
    for file in sorted(tmp_path.iterdir()):
        sound = file.read_bytes()
        step = max(1, len(sound) // 60)
        for position in range(0, len(sound), step):
            file.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
            with pytest.raises(CorruptionError):
                load_tokenizer(tmp_path)
        file.write_bytes(sound[:-9])
        with pytest.raises(CorruptionError):
            load_tokenizer(tmp_path)
        file.write_bytes(sound)
    assert load_tokenizer(tmp_path).hash == trained[kind].hash


def test_no_tokenizer_in_a_folder(tmp_path: Path):
    with pytest.raises(StorageError, match="cannot read"):
        load_tokenizer(tmp_path)


def _outside(tmp_path: Path, decoder: str = "byte-level") -> Path:
    """A tokenizer.json as other programs write them: special marks, truncation and padding switched on."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE() if decoder == "byte-level" else models.Unigram())
    if decoder == "byte-level":
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=350, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
        )
    else:
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=["</s>", "<unk>"], unk_token="<unk>", show_progress=False
        )
    inner.train_from_iterator(TEXTS, trainer)
    inner.add_tokens([AddedToken("<tag>", special=False)])
    inner.enable_truncation(4)
    inner.enable_padding(length=9)
    inner.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_a_loaded_file_takes_its_own_end_mark_and_text_cannot_forge_it(tmp_path: Path):
    tokenizer = open_tokenizer_file(_outside(tmp_path))
    assert tokenizer.doc_id == 0
    assert tokenizer.lossless
    for text in ("a <|endoftext|> b", "x <tag> y", "  two  spaces\n", "the quick brown fox jumps over everything"):
        ids = tokenizer.encode(text)
        assert tokenizer.doc_id not in ids
        assert tokenizer.decode(ids) == text
    assert open_tokenizer_file(tmp_path).hash == tokenizer.hash


def test_a_loaded_file_that_loses_text_says_so_and_streams_what_it_decodes(tmp_path: Path):
    tokenizer = open_tokenizer_file(_outside(tmp_path, "metaspace"))
    assert not tokenizer.lossless
    text = "the quick brown fox number 7 jumps over the lazy dog"
    ids = tokenizer.encode(text).tolist()
    assert tokenizer.decode(ids) == text
    assert "".join(iter_decoded(tokenizer, ids)) == text
    assert "".join(iter_decoded(tokenizer, [*ids, tokenizer.doc_id, *ids, 10**6])) == text + text + "\ufffd"


def test_a_loaded_file_without_end_mark_gets_a_fresh_id(tmp_path: Path, trained: dict[str, Tokenizer]):
    trained["bpe"].save(tmp_path)
    again = LibraryTokenizer((tmp_path / "tokenizer.json").read_text(encoding="utf-8"), "again")
    assert (again.doc_id, again.vocab_size) == (399, 400)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bpe:10", "whole number from 257"),
        ("bpe:many", "'bpe:many'"),
        ("unigram:99999999", "to 1048576"),
        ("chars:2", "from 3"),
        ("bytes:7", "takes no size"),
        ("bpee:400", "Did you mean 'bpe'"),
        ("no/such/file", "path of a tokenizer.json"),
    ],
)
def test_impossible_specs_are_refused(spec: str, message: str):
    with pytest.raises(DataError, match=message):
        build_tokenizer(spec, "stdlib")


@pytest.mark.parametrize("content", [b"not json", b"{}", b"\xff\xfe", b'{"model": {"type": "os.system"}}'])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        build_tokenizer(str(tmp_path / "tokenizer.json"), "stdlib")


@pytest.mark.parametrize("kind", ["bpe:300", "unigram:300", "wordpiece:80,lower"])
def test_a_long_text_is_encoded_in_parts_with_the_same_ids(kind, monkeypatch):
    texts = ["The runner ran  past,\n the running runners' 12 dogs. " * 9, "Ünïcödé  überall - and more " * 12, "", "x" * 700]
    tokenizer = build_tokenizer(kind, MemoryCorpus(texts[:2] * 3))
    whole = tokenizer.encode_batch(texts)
    monkeypatch.setattr(tokenizers, "LONG", 100)
    monkeypatch.setattr(tokenizers, "PART", 37)
    parts = tokenizer.encode_batch(texts)
    for one, other in zip(whole[:3], parts[:3], strict=True):
        assert one.tolist() == other.tolist() and one.dtype == other.dtype
    assert tokenizer.lossless is False or tokenizer.decode(parts[3]) == texts[3]


def test_training_takes_no_square_of_a_word_s_length(monkeypatch):
    text = "the runner ran " * 20 + "x" * 2500 + " and ran" + " " * 1200 + "on"
    parts = list(dataset._short_runs(text))
    assert "".join(parts) == text and max(len(word) for part in parts for word in part.split()) == 1000
    assert list(dataset._short_runs(text[:1200])) == [text[:1200]]
