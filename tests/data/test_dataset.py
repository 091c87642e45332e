"""prepare: everything that was in the corpus is in the tokens; the cache answers for what has not changed, and only that."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from orrery.core.errors import CorruptionError, DataError, StorageError
from orrery.data import Loader, MemoryCorpus, build_tokenizer, dataset, prepare, validation_windows
from orrery.data.text import memory_document
from orrery.data.tokenizers import CharTokenizer

SRC = str(Path(__file__).resolve().parents[2] / "src")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache ü"
    monkeypatch.setenv("ORRERY_CACHE", str(folder))
    return folder


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "my notes ü"
    folder.mkdir()
    for number in range(120):
        (folder / f"note {number}.txt").write_text(
            f"Note {number}: naïve — 漢字 {number * 31}\n" * (1 + number % 7), encoding="utf-8"
        )
    return folder


def texts_of(data) -> list[str]:
    return [
        data.tokenizer.decode(file.document(number))
        for file in (data.train, data.validation)
        for number in range(file.documents)
    ]


@pytest.mark.parametrize("tokenizer", ["bytes", "chars", "bpe:300", "unigram:300"])
def test_every_document_is_in_the_tokens_once_with_its_bytes(notes: Path, tokenizer: str):
    data = prepare(notes, tokenizer, quiet=True)
    originals = sorted(path.read_text(encoding="utf-8") for path in notes.iterdir())
    assert data.validation.documents >= 1
    assert data.train.total_bytes + data.validation.total_bytes == sum(len(text.encode()) for text in originals)
    if tokenizer != "chars":  # (which loses the characters that only validation has)
        assert sorted(texts_of(data)) == originals
        for file in (data.train, data.validation):
            decoded = [len(data.tokenizer.decode(file.document(number)).encode()) for number in range(file.documents)]
            assert decoded == file.text_bytes.tolist()
    assert data.info["train"]["tokens"] == len(data.train)
    assert data.info["tokenizer"]["name"] == tokenizer
    assert data.info["validation"]["hash"] == data.validation.hash


def test_the_second_call_reads_the_cache(notes: Path, monkeypatch: pytest.MonkeyPatch):
    first = prepare(notes, "bpe:300", quiet=True)
    monkeypatch.setattr(dataset, "_build", lambda *_: pytest.fail("built again"))
    monkeypatch.setattr("orrery.data.tokenizers.BPETokenizer.build", lambda *_: pytest.fail("trained again"))
    again = prepare(notes, "bpe:300", quiet=True)
    assert (again.hash, again.info) == (first.hash, first.info)


def test_a_changed_file_or_another_tokenizer_is_another_dataset(notes: Path):
    first, chars = prepare(notes, quiet=True), prepare(notes, "chars", quiet=True)
    (notes / "note 0.txt").write_text("changed\n", encoding="utf-8")
    second = prepare(notes, quiet=True)
    assert len({first.hash, chars.hash, second.hash}) == 3
    assert "changed\n" in texts_of(second)


def test_names_and_places_do_not_matter_but_content_does(notes: Path, tmp_path: Path):
    first = prepare(notes, quiet=True)
    notes.rename(tmp_path / "elsewhere")
    assert prepare(tmp_path / "elsewhere", quiet=True).hash == first.hash


def test_latin_1_is_counted_or_refused(notes: Path, capsys: pytest.CaptureFixture[str]):
    assert prepare(notes).notes == []
    assert capsys.readouterr().err == ""
    (notes / "photo").write_bytes(bytes(99))
    (notes / "old.txt").write_bytes(b"caf\xe9 au lait, na\xefve readers of long ago\n")
    data = prepare(notes, quiet=True)
    assert (data.info["corpus"]["replaced"], data.info["corpus"]["replaced_in"]) == (2, "old.txt")
    assert "caf\ufffd au lait, na\ufffdve readers of long ago\n" in texts_of(data)
    assert data.notes == prepare(notes).notes
    assert [line.split(": ", 1)[1] for line in capsys.readouterr().err.splitlines()] == data.notes
    assert data.notes[0].startswith("2 characters were not UTF-8 and were replaced, the first in 'old.txt'")
    assert data.notes[1] == "1 binary file was left out"
    with pytest.raises(DataError, match=r"'old\.txt' is not UTF-8 text: byte 0xe9 at position 3"):
        prepare(notes, strict=True, quiet=True)


def test_one_text_is_cut_and_its_tail_stored_in_parts(tmp_path: Path):
    book = "".join(f"Paragraph {number} of the book, with some words in it.\n\n" for number in range(80_000))
    (tmp_path / "book.txt").write_text(book, encoding="utf-8")
    data = prepare(tmp_path / "book.txt", quiet=True)
    assert data.train.documents == 1
    assert data.validation.documents == round(data.validation.total_bytes / 2**16) >= 3
    assert "".join(texts_of(data)) == book
    assert all(text.endswith("\n\n") for text in texts_of(data))
    assert "cut at a paragraph" in data.info["split"]
    sample = validation_windows(data.validation, 128, 8, 100_000)
    assert 0 < sample.bytes <= 100_000


def test_tiny_corpora_work_until_they_are_smaller_than_a_window():
    data = prepare(MemoryCorpus(["A short text.\n\nAnd its end."]), quiet=True)
    assert "".join(texts_of(data)) == "A short text.\n\nAnd its end."
    Loader(data.train, 1, 8, 0).batch(0)
    with pytest.raises(DataError, match="smaller than one window"):
        Loader(data.train, 1, 512, 0)
    with pytest.raises(DataError, match="too short"):
        prepare(MemoryCorpus(["x"]), quiet=True)
    with pytest.raises(DataError, match="holds no text"):
        prepare(MemoryCorpus([]), quiet=True)


def test_unknown_characters_are_counted():
    tokenizer = CharTokenizer("abc \n")
    data = prepare(MemoryCorpus([f"abc {'xy' * number}\n" for number in range(50)]), tokenizer, quiet=True)
    assert data.info["train"]["unknown"] + data.info["validation"]["unknown"] == sum(2 * number for number in range(50))
    assert not data.info["tokenizer"]["lossless"]
    assert data.notes == [
        "2,450 characters are unknown to the tokenizer chars and lost: bits per byte come out too low"
    ]


@pytest.mark.parametrize("side", ["train", "validation"])
def test_a_damaged_cache_is_found_and_named_with_the_remedy(notes: Path, cache: Path, side: str):
    prepare(notes, quiet=True)
    (file,) = (cache / "tokens").glob(f"*-{side}/tokens-00000.bin")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"tokens-00000\.bin.*delete the folder"):
        prepare(notes, quiet=True)


def test_a_damaged_trained_tokenizer_is_found(notes: Path, cache: Path):
    build_tokenizer("bpe:300", notes, quiet=True)
    (file,) = (cache / "tokenizers").glob("*/tokenizer.json")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptionError, match=r"tokenizer\.json.*delete the folder"):
        prepare(notes, "bpe:300", quiet=True)


def test_what_a_killed_build_left_is_swept(notes: Path, cache: Path):
    path = prepare(notes, quiet=True).train.path
    left = path.with_name(f".{path.name}.abcd1234.tmp")
    path.rename(left)
    prepare(notes, quiet=True)
    assert path.is_dir() and not left.exists()


def test_a_cache_that_cannot_be_written_is_named(notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ORRERY_CACHE", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="ORRERY_CACHE"):
        prepare(notes, quiet=True)


def test_a_disk_without_room_is_refused_before_anything_is_written(
    notes: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    with pytest.raises(StorageError, match="free"):
        prepare(notes, quiet=True)
    assert not list((cache / "tokens").glob("*/"))


class Restless(MemoryCorpus):
    """Gives another text every time it is read."""

    readings = 0

    def documents(self, tally=None):
        self.readings += 1
        yield from super().documents(tally)
        yield memory_document("moving", f"reading {self.readings} of a file that is being written to\n")


def test_a_corpus_that_changes_while_it_is_read_is_refused(cache: Path):
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(Restless([f"document {number}\n" for number in range(50)]), quiet=True)
    assert not list((cache / "tokens").glob("*/"))


def test_long_documents_are_encoded_in_pieces_as_short_ones_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    texts = [f"{number} " * 3000 + "\n" for number in range(12)]
    whole = prepare(MemoryCorpus(texts), quiet=True)
    monkeypatch.setattr(dataset, "_HELD", 1000)
    monkeypatch.setattr(dataset, "_BATCH", 2000)
    monkeypatch.setattr("orrery.data.text.PIECE", 700)
    monkeypatch.setenv("ORRERY_CACHE", str(tmp_path / "other"))
    pieces = prepare(MemoryCorpus(texts), quiet=True)
    assert pieces.hash == whole.hash


def test_memory_stays_small_while_a_large_file_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dataset, "_HELD", 1 << 20)
    file = tmp_path / "large.txt"
    with open(file, "wb") as out:
        for block in range(240):
            out.write(f"{block:05d} lorem ipsum dolor sit amet\n".encode() * 4000)
    tracemalloc.start()
    data = prepare(file, quiet=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(data.train) > 29e6
    assert peak < 32e6  # the tokens have 60 MB, the text 31


def test_two_processes_may_prepare_the_same_at_once(notes: Path):
    code = f"from orrery.data import prepare; print(prepare({str(notes)!r}, 'bpe:300', quiet=True).hash)"
    environment = {**os.environ, "PYTHONPATH": SRC}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    found = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert found == {prepare(notes, "bpe:300", quiet=True).hash}


def test_preparing_imports_no_torch_and_neither_does_the_room(notes: Path):
    code = (
        "import sys, orrery.data; assert not {m for m in sys.modules if m.startswith('orrery.data.')};"
        f"orrery.data.prepare({str(notes)!r}, 'bytes', quiet=True); orrery.data.create_task('mqar').arrays(0, 2, 0);"
        "bad = {'torch', 'tokenizers', 'transformers'} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": SRC}, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_the_room_offers_its_names_and_no_others():
    import orrery.data

    for name in orrery.data.__all__:
        assert getattr(orrery.data, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = orrery.data.nothing
