"""Building an index: encode, plan shards, sort suffixes, pack, seal.

Work is done in `.NAME.build` beside the index, whose stages are noted as they are finished, so that a build which was
killed goes on where it stood. The finished folder is renamed into place. A lock lets one builder at a time work.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from orrery.core.config import config_hash
from orrery.core.errors import BudgetError, ConfigError, CorruptionError, DataError, StorageError
from orrery.core.files import check_free_space, publish_directory, read_json, write_json
from orrery.core.progress import Progress, progress
from orrery.ngram import external
from orrery.ngram import memory as process
from orrery.ngram.index import DESCRIPTION, FORMAT, Index, open_index
from orrery.ngram.provenance import name_record
from orrery.ngram.sampled import BLOCK as SAMPLED_BLOCK
from orrery.ngram.sampled import SampledLayout, SampledWriter, check_sample, with_before, write_backward
from orrery.ngram.shard import BLOCK, Layout, ShardWriter, blocks, token_type
from orrery.ngram.sources import Source, open_source
from orrery.ngram.suffixes import LONGEST, suffix_array

_STAGE = "build.json"
LEAST = 1 << 16  # tokens that must fit into memory
_BUFFERS = 24 << 20  # bytes of what is read and written where a shard is sorted by pieces
_COUNTED = external.COUNTED
PIECES = 8  # that a shard is sorted in, where its documents allow it: more shards are made of more tokens
_PER_TOKEN = 8  # bytes beside the tokens themselves: 4 of the result, and of the shorter text and its buckets 4


def build_index(
    source: Any,
    folder: str | Path,
    *,
    memory: str | int = "4G",
    tokenizer: Any = None,
    shards: int | None = None,
    split: str = "all",
    vocab_size: int | None = None,
    document: int | None = None,
    names: Iterable[str] | None = None,
    sample: int | None = None,
    quiet: bool = False,
) -> Index:
    """Build an index and open it. See :func:`orrery.ngram.sources.open_source` for what is indexed.

    Args:
        source: a corpus (name, path, Corpus, texts), a TokenFile, an array of ids, or a list of arrays, one a document.
        folder: of the index; an older index there is replaced once the new one is whole.
        memory: what the process may occupy, as in `4G`, `800M`. A shard that does not fit is sorted by pieces, which are
            merged (:mod:`orrery.ngram.external`).
        tokenizer: as `bytes` (the default) or `bpe:16384` for a corpus; a Tokenizer.
        shards: number of parts; None: as few as possible, each of at most 8 pieces (of more where a document is larger).
        split: of a corpus: `all`, `train` or `validation`.
        vocab_size, document, names: of ids: see :func:`~orrery.ngram.sources.open_source`.
        sample: keep the place of every so-many-th token only, 2..1024 (:mod:`orrery.ngram.sampled`): less than half the
            size, the same answers, slower where places are asked for. None: the whole suffix array.
        quiet: show no progress.

    Raises:
        DataError: nothing to index, or ids outside the vocabulary.
        StorageError: no room, no permission, or another process is building there.
        BudgetError: less memory than the smallest shard needs.
    """
    budget = parse_size(memory)
    if shards is not None and shards < 1:
        raise ConfigError(f"shards must be 1 or more, not {shards}")
    target = Path(folder).expanduser()
    opened = open_source(source, tokenizer, split, vocab_size, document, names, quiet)
    check_sample(sample, opened.vocab_size)
    with only_builder(target):
        work = target.with_name(f".{target.name}.build")
        key = config_hash([FORMAT, opened.key, opened.width, opened.vocab_size, opened.doc_id, shards or 0, *told(sample)])
        stage = _resume(work, key)
        if stage is None:
            _room(budget, opened)  # too little is said before text is read
            stage = _spool(opened, work, key, quiet)
        process.release()
        _shards(opened, work, stage, budget, shards, sample, quiet)
        _describe(opened, work, stage, sample)
        publish_directory(work, target)
    return open_index(target)


def told(sample: int | None) -> list[int]:
    """What tells a build of a sampled index from one of a whole one."""
    return [] if sample is None else [sample]


def parse_size(text: str | int) -> int:
    """Bytes of `"4G"`, `"800M"`, `"1.5GiB"`, or of a number.

    Raises:
        ConfigError: it is no size.
    """
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", text, re.IGNORECASE)
    if match is None:
        raise ConfigError(f"'{text}' is no amount of memory; write it as in 4G or 800M")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))


@contextmanager
def only_builder(target: Path) -> Iterator[None]:
    """Hold the lock of a folder's builder; freed by the system if the process dies.

    Raises:
        StorageError: another process holds it, or the place cannot be written.
    """
    lock = target.with_name(f".{target.name}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = open(lock, "a+b")  # noqa: SIM115 - closed below
    except OSError as error:
        raise StorageError(f"cannot write under '{lock.parent}': {error.strerror or error}") from error
    with handle:
        try:
            if sys.platform == "win32":
                import msvcrt

                handle.seek(0)
                msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl

                fcntl.flock(handle.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError(f"another process is building '{target}'; wait for it or choose another folder") from error
        yield


def _resume(work: Path, key: str) -> dict[str, Any] | None:
    """Where an earlier build of the same thing stood; what is left of another one is removed."""
    with suppress(CorruptionError, StorageError):
        stage = read_json(work / _STAGE)
        if isinstance(stage, dict) and stage.get("key") == key:
            return stage
    shutil.rmtree(work, ignore_errors=True)
    return None


def _spool(source: Source, work: Path, key: str, quiet: bool) -> dict[str, Any]:
    """Write all tokens as one stream, with the documents' offsets and names."""
    if source.unit == "tok" and source.total:
        check_free_space(work.parent, int(source.total) * (source.width + 5))
    try:
        work.mkdir(parents=True, exist_ok=True)
        text_bytes, documents = 0, 0
        kind, length, fresh = token_type(source.width), 0, True
        mark = np.array([(1 << 8 * source.width) - 1], dtype=kind).tobytes()
        with (
            open(work / "stream.bin", "wb") as stream,
            open(work / "names.bin", "wb") as labels,
            open(work / "documents.bin", "wb") as offsets,
            open(work / "names.idx", "wb") as ends,
            progress(source.total, "reading tokens", source.unit, quiet=quiet) as bar,
        ):
            for numbers in (offsets, ends):
                numbers.write(_number(0))
            for piece in source.pieces():
                if fresh:
                    stream.write(mark)
                    length += 1
                stream.write(np.ascontiguousarray(piece.ids, dtype=kind).tobytes())
                length, text_bytes, fresh = length + len(piece.ids), text_bytes + piece.size, piece.last
                if fresh:
                    labels.write(name_record(piece.name))
                    offsets.write(_number(length))
                    ends.write(_number(labels.tell()))
                    documents += 1
                bar.update(piece.size if source.unit == "B" else len(piece.ids) + 1)
            stream.write(mark)
        if not documents:
            raise DataError("there is no token to build an index of")
    except OSError as error:
        raise StorageError(f"cannot write '{work}': {error.strerror or error}; free some space and run again") from error
    stage = {"key": key, "tokens": length, "documents": documents, "text_bytes": text_bytes, "shards": []}
    write_json(work / _STAGE, stage)
    return stage


def _number(value: int) -> bytes:
    return value.to_bytes(8, "little", signed=True)


def _shards(
    source: Source, work: Path, stage: dict[str, Any], budget: int, wanted: int | None, sample: int | None, quiet: bool
) -> None:
    """Sort the suffixes of every shard that is not done yet."""
    room = _room(budget, source)
    edges = planned(work, stage, _capacity(room, source, sample), wanted)
    done = stage["shards"]
    check_space(work, stage, source, edges, room, sample)
    with progress(stage["tokens"], "sorting suffixes", "tok", quiet=quiet) as bar:
        if done:
            bar.start_at(sum(entry["tokens"] for entry in done))
        for number in range(len(done)):  # a build that was killed right behind its note
            shutil.rmtree(pieces_folder(work, number), ignore_errors=True)
        for number in range(len(done), len(edges) - 1):
            first, last = edges[number], edges[number + 1]
            layout = layout_of(source, last.token - first.token, sample)
            layout = make_shard(work, number, len(edges) == 2, first.token, last.document - first.document, layout, bar, room)
            done.append({**layout.entry(), "documents": last.document - first.document})
            write_json(work / _STAGE, stage)
            shutil.rmtree(pieces_folder(work, number), ignore_errors=True)


def layout_of(source: Source, n: int, sample: int | None) -> Layout | SampledLayout:
    """Of a shard of n tokens that is to be made."""
    facts = n, source.width, source.doc_id, source.vocab_size
    return Layout(*facts) if sample is None else SampledLayout(*facts, sample)


def planned(work: Path, stage: dict[str, Any], capacity: int, wanted: int | None) -> list[_Edge]:
    """The shards' edges; a build that goes on keeps those it began with, whatever memory it has now."""
    if "edges" not in stage:
        stage["edges"] = [[edge.document, edge.token] for edge in _plan(work / "documents.bin", capacity, wanted)]
        write_json(work / _STAGE, stage)
    return [_Edge(document, token) for document, token in stage["edges"]]


def pieces_folder(work: Path, number: int) -> Path:
    """Where the pieces of a shard are kept until it is done."""
    return work / f"shard-{number:05d}.pieces"


def check_space(
    work: Path, stage: dict[str, Any], source: Source, edges: list[_Edge], room: int, sample: int | None = None
) -> None:
    """Look for room on the disk: for all shards, and for the pieces of the largest.

    Raises:
        StorageError: there is too little.
    """
    largest = max(b.token - a.token for a, b in zip(edges[:-1], edges[1:], strict=True))
    pieces = 0 if largest <= _inside(room, source.width, source.vocab_size) else 6 * largest
    if sample is not None:  # the text backward, the ids behind contexts before and after a level
        pieces += (3 * source.width + 1 + (source.width if pieces else 0)) * largest
    check_free_space(work, stage["tokens"] * (source.width + 4) + pieces)


class _Edge:
    """A place between two shards."""

    def __init__(self, document: int, token: int) -> None:
        self.document, self.token = document, token


def _room(budget: int, source: Source, *, workers: int = 1, each: int | None = None, beside: int = 0) -> int:
    """Bytes that are left for tokens in each of the `workers` that share a budget.

    each: bytes that a worker takes anyway (None: this process is the worker). beside: taken once, by the process that waits.

    Raises:
        BudgetError: hardly any.
    """
    taken = (process.reserve(source.encodes) if each is None else each) + 48 * min(source.vocab_size, _COUNTED)
    room = (budget - beside) // workers - taken
    if _inside(room, source.width, source.vocab_size) < LEAST:
        enough = ((beside + workers * taken) >> 20) + 16 * workers
        raise BudgetError(f"{budget >> 20}M are too little to sort anything; give at least {enough}M")
    return room


def _inside(room: int, width: int, vocab_size: int) -> int:
    """Tokens that are sorted in so many bytes at once."""
    beside = _PER_TOKEN + (0 if width < 4 else 4 if vocab_size <= _COUNTED else 32)
    return min(room // (width + beside), LONGEST)


def _capacity(room: int, source: Source, sample: int | None = None) -> int:
    """Tokens of the largest shard that is made where documents allow it."""
    piece = int(max(room / 2, room - _BUFFERS) / external.bytes_per_token(source.width, source.vocab_size))
    most = external.LONGEST if sample is None else min(external.LONGEST, sample * room // 24)  # 8 bytes for each place that is kept
    return min(max(PIECES * piece, _inside(room, source.width, source.vocab_size)), most)


def _plan(documents: Path, capacity: int, wanted: int | None) -> list[_Edge]:
    """Cut the stream between documents into as few shards as possible, of about equal size.

    A document that is larger than `capacity` makes its shard larger.

    Raises:
        BudgetError: a document is larger than any shard can be.
    """
    offsets = np.memmap(documents, dtype="<i8", mode="r")
    total, count = int(offsets[-1]), len(offsets) - 1
    parts = max(wanted or 1, -(-total // capacity))
    edges = [_Edge(0, 0)]
    for part in range(1, min(parts, count)):
        document = int(np.searchsorted(offsets, total * part // parts))
        document = min(max(document, edges[-1].document + 1), count - (min(parts, count) - part))
        edges.append(_Edge(document, int(offsets[document])))
    edges.append(_Edge(count, total))
    longest = max(b.token - a.token for a, b in zip(edges[:-1], edges[1:], strict=True))
    if longest > external.LONGEST:
        raise BudgetError(f"a document of about {longest:,} tokens is too long; {external.LONGEST:,} tokens at most make a shard")
    return edges


def make_shard(
    work: Path, number: int, only: bool, start: int, documents: int, layout: Layout | SampledLayout, bar: Progress, room: int
) -> Layout | SampledLayout:
    """Sort a shard, at once or by pieces, and write its file."""
    path, stream = work / f"shard-{number:05d}.bin", work / "stream.bin"
    if isinstance(layout, SampledLayout):
        return _sampled(work, number, start, layout, bar, room)
    if only and stream.exists():
        stream.rename(path)
    elif not only:
        _copy_tokens(stream, path, start, layout)
    if layout.n + 1 > _inside(room, layout.width, layout.vocab_size):
        writer = ShardWriter(path, layout, room)
        writer.append(_pieces(work, number, path, layout, layout.n + 1, bar, room).blocks(BLOCK))
        process.release()
        return writer.finish()
    writer = ShardWriter(path, layout)
    tokens = writer.tokens()
    order = suffix_array(*_dense(tokens, layout))
    closing = layout.n - documents  # the last mark, alone, is the first of the suffixes that begin with a mark
    order[closing:-1] = order[closing + 1 :]
    writer.append(blocks(order[:-1]))
    del order, tokens
    process.release()
    layout = writer.finish()
    bar.update(layout.n)
    return layout


def _sampled(work: Path, number: int, start: int, layout: SampledLayout, bar: Progress, room: int) -> SampledLayout:
    """Sort what stands before every token, read backwards."""
    path = work / f"shard-{number:05d}.bin"
    backward = work / f"shard-{number:05d}.backward"
    write_backward(work / "stream.bin", start, layout, backward)
    if layout.n + 1 > _inside(room, layout.width, layout.vocab_size):
        pieces = _pieces(work, number, backward, layout, layout.n, bar, room, closed=False)
        done = SampledWriter(path, layout).write(pieces.before(pieces.blocks(SAMPLED_BLOCK)))
    else:
        tokens = np.fromfile(backward, dtype=token_type(layout.width))
        order = suffix_array(*_dense(tokens, layout))
        done = SampledWriter(path, layout).write(with_before(tokens, order))
        del order, tokens
        bar.update(layout.n)
    process.release()
    backward.unlink()
    return done


def _pieces(
    work: Path, number: int, path: Path, layout: Any, total: int, bar: Progress, room: int, closed: bool = True
) -> external.Pieces:
    """A shard's tokens as pieces that fit into memory; they stay until it is noted as done."""
    bound = min(layout.vocab_size, (1 << 8 * layout.width) - 1)
    size = int(max(room / 2, room - _BUFFERS) / external.bytes_per_token(layout.width, layout.vocab_size))
    pieces = external.Pieces(
        pieces_folder(work, number), path, token_type(layout.width), total, bound, size,
        lambda share: bar.update(share * layout.n, pieces=len(pieces)), closed,
    )  # fmt: skip
    return pieces


def _dense(tokens: np.ndarray, layout: Layout | SampledLayout) -> tuple[np.ndarray, int]:
    """Tokens and a bound of them that is small enough to count each value: the mark of four bytes is not."""
    if layout.width < 4:
        return tokens, 1 << 8 * layout.width
    if layout.vocab_size <= _COUNTED:
        return np.minimum(tokens, layout.vocab_size), layout.vocab_size + 1
    found, ranks = np.unique(tokens, return_inverse=True)
    return ranks.astype(np.uint32), len(found)


def _copy_tokens(stream: Path, path: Path, start: int, layout: Layout) -> None:
    try:
        with open(stream, "rb") as source, open(path, "wb") as target:
            source.seek(start * layout.width)
            left = (layout.n + 1) * layout.width
            while left:
                piece = source.read(min(left, 1 << 22))
                target.write(piece)
                left -= len(piece)
    except OSError as error:
        raise StorageError(f"cannot write '{path}': {error.strerror or error}; free some space and run again") from error


def _describe(source: Source, work: Path, stage: dict[str, Any], sample: int | None = None) -> None:
    """Write the description and the tokenizer, and remove what only the build needed."""
    if source.tokenizer is not None:
        (work / "tokenizer").mkdir(exist_ok=True)
        source.tokenizer.save(work / "tokenizer")
    description: dict[str, Any] = {
        "format": FORMAT,
        "kind": "ngram",
        "tokens": stage["tokens"],
        "documents": stage["documents"],
        "text_bytes": stage["text_bytes"],
        "width": source.width,
        "vocab_size": source.vocab_size,
        "doc_id": source.doc_id,
        "shards": stage["shards"],
        **({} if sample is None else {"sample": sample}),
        "source": source.about,
        "tokenizer": None if source.tokenizer is None else {"name": source.tokenizer.name, "hash": source.tokenizer.hash},
    }
    write_json(work / DESCRIPTION, {**description, "check": config_hash(description)})
    (work / "stream.bin").unlink(missing_ok=True)
