"""ARPA files: the exchange format of back-off models (SRILM, KenLM, ...), read and written.

    \\data\\
    ngram 1=V  ngram 2=...
    \\1-grams:
    log10 P <tab> words <tab> log10 back-off weight

Reading takes any file of the format, also `.gz`; columns may be separated by tabs or spaces. A pruned file may hold an n-gram
but not its suffix: the suffix is added with the probability that the file gives it by backing off, which changes no
score. Writing gives labels to ids: the model's words, or the id in figures; `<s>`, `</s>` and `<unk>`, which readers demand,
are added with log10 P = -99 where the model has no such token. A document mark of a token model is written as `<s>`: it
begins documents. It is also what ends them there, which the format cannot say: give `end="</s>"` and every n-gram that ends
with the mark is written with that label instead.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orrery.core.errors import CorruptionError, DataError, StorageError
from orrery.core.files import write_bytes
from orrery.ngram.counts import BackoffModel
from orrery.ngram.trie import Floats, Ints, token_type

NEVER = -99.0  # log10 of zero, as the format writes it
_CHUNK = 1 << 17


def read_arpa(path: str | Path, dtype: Any = np.float32) -> BackoffModel:
    """A model from an ARPA file; its `words` are the labels of the unigrams, in the order of the file.

    Raises:
        StorageError: when it cannot be read.
        CorruptionError: naming the line that is not of the format.
    """
    name = Path(path)
    try:
        with gzip.open(name, "rb") if name.suffix == ".gz" else open(name, "rb") as raw, io.TextIOWrapper(raw, "utf-8") as file:
            levels, words = _parse(_Lines(file, name))
    except OSError as error:
        raise StorageError(f"cannot read '{path}': {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CorruptionError(f"'{path}' is damaged: it is not UTF-8 text (byte {error.start})") from error
    tables = _tables(levels, len(words), str(path), dtype)
    document = next((words.index(mark) for mark in ("<s>", "<S>") if mark in words), None)
    return BackoffModel(tables, len(words), document, ends=False, method="arpa", facts={"file": name.name}, words=words)


class _Lines:
    """Lines without blank ones, with their numbers for complaints."""

    def __init__(self, file: Any, path: Path) -> None:
        self.file, self.path, self.number = file, path, 0

    def next(self) -> str:
        for line in self.file:
            self.number += 1
            if stripped := line.strip(" \t\r\n"):
                return stripped
        raise self.complaint("the file ends before \\end\\")

    def complaint(self, what: str) -> CorruptionError:
        return CorruptionError(f"'{self.path}' is no ARPA file: {what} (line {self.number})")


def _parse(lines: _Lines) -> tuple[list[tuple[Ints, Floats, Floats]], list[str]]:
    while lines.next() != "\\data\\":
        pass
    sizes: list[int] = []
    while (line := lines.next()).startswith("ngram "):
        which, _, number = line[6:].partition("=")
        if which.strip() != str(len(sizes) + 1) or not number.strip().isdecimal():
            raise lines.complaint(f"'{line}' where 'ngram {len(sizes) + 1}=...' belongs")
        sizes.append(int(number))
    while sizes and sizes[-1] == 0:
        sizes.pop()
    if not sizes:
        raise lines.complaint("it announces no n-grams")
    levels: list[tuple[Ints, Floats, Floats]] = []
    words: dict[str, int] = {}
    for order, size in enumerate(sizes, 1):
        while line != f"\\{order}-grams:":
            if not line.startswith("\\"):
                raise lines.complaint(f"'{line[:40]}' where \\{order}-grams: belongs")
            line = lines.next()
        levels.append(_section(lines, order, size, words))
        line = lines.next()
    while line != "\\end\\":
        if not line.startswith("\\"):
            raise lines.complaint(f"more n-grams than announced: '{line[:40]}'")
        line = lines.next()
    return levels, list(words)


def _section(lines: _Lines, order: int, size: int, words: dict[str, int]) -> tuple[Ints, Floats, Floats]:
    grams, values, weights = np.empty((size, order), dtype=np.int64), np.empty(size), np.zeros(size)
    for row in range(size):
        parts = lines.next().split()
        if len(parts) not in (order + 1, order + 2):
            raise lines.complaint(f"an n-gram of order {order} has {len(parts)} columns")
        try:
            values[row] = float(parts[0])
            weights[row] = float(parts[order + 1]) if len(parts) == order + 2 else 0.0
            if order == 1:
                if parts[1] in words:
                    raise lines.complaint(f"'{parts[1]}' stands there twice")
                grams[row, 0] = words.setdefault(parts[1], row)
            else:
                grams[row] = [words[part] for part in parts[1 : order + 1]]
        except ValueError as error:
            raise lines.complaint(str(error)) from error
        except KeyError as error:
            raise lines.complaint(f"the word {error} is no unigram") from error
    if size and (float(values.max()) > 1e-4 or bool(np.isnan(values).any() or np.isnan(weights).any())):
        raise lines.complaint(f"a log10 probability of order {order} is not below 0")
    return grams, values, weights


def _tables(levels: list[tuple[Ints, Floats, Floats]], vocabulary: int, where: str, dtype: Any) -> dict[str, Any]:
    """The flat arrays of sorted n-grams."""
    offsets = np.concatenate([[0], np.cumsum([len(grams) for grams, _, _ in levels])]).astype(np.int64)
    kind = np.int32 if offsets[-1] < 1 << 31 else np.int64
    keys: list[Ints] = [np.arange(vocabulary)]
    words, links, children = [], [np.full(vocabulary, -1)], []
    probabilities, weights = [levels[0][1]], [levels[0][2]]
    for k, (grams, values, backs) in enumerate(levels[1:], 2):
        parent, suffix = _nodes(grams[:, :-1], keys, vocabulary), _nodes(grams[:, 1:], keys, vocabulary)
        if len(grams) and min(parent.min(), suffix.min()) < 0:
            return _tables(_closed(levels), vocabulary, where, dtype)
        key = parent * vocabulary + grams[:, -1]
        order = np.argsort(key, kind="stable")
        key = key[order]
        if bool((key[1:] == key[:-1]).any()):
            raise CorruptionError(f"'{where}' holds an n-gram of order {k} twice")
        links.append((suffix + offsets[k - 2])[order])
        words.append(grams[order, -1])
        children.append(np.bincount(key // vocabulary, minlength=len(keys[-1])))
        probabilities.append(values[order])
        weights.append(backs[order])
        keys.append(key)
    first = np.concatenate([[vocabulary], vocabulary + np.cumsum(np.concatenate(children))]) if children else np.zeros(1)
    tables = {
        "offsets": offsets,
        "word": np.concatenate(words).astype(token_type(vocabulary)) if words else np.empty(0, token_type(vocabulary)),
        "first": first.astype(kind),
        "link": np.concatenate(links).astype(kind),
        "probability": _power(np.concatenate(probabilities)).astype(dtype),
        "backoff": _power(np.concatenate(weights[:-1] or [weights[0][:0]])).astype(dtype),
    }
    _fill_added(tables)
    return tables


def _power(values: Floats) -> Floats:
    return np.where(values <= NEVER, 0.0, 10.0 ** np.maximum(values, NEVER))


def _nodes(grams: Ints, keys: list[Ints], vocabulary: int) -> Ints:
    """Row in its sorted order of each n-gram (G,k), -1 where it is not there."""
    node = grams[:, 0]
    for j in range(1, grams.shape[1]):
        wanted = node * vocabulary + grams[:, j]
        at = np.minimum(np.searchsorted(keys[j], wanted), max(0, len(keys[j]) - 1))
        node = np.where((node >= 0) & (len(keys[j]) > 0) & (keys[j][at] == wanted), at, -1)
    return node


def _closed(levels: list[tuple[Ints, Floats, Floats]]) -> list[tuple[Ints, Floats, Floats]]:
    """With every prefix and suffix of every n-gram; added ones have probability nan until they are worked out."""
    result = list(levels)
    for k in range(len(levels), 2, -1):
        grams, (below, values, backs) = result[k - 1][0], result[k - 2]
        needed = np.unique(np.concatenate([grams[:, 1:], grams[:, :-1]]), axis=0) if len(grams) else grams[:, 1:]
        rows, counts = np.unique(np.concatenate([below, below, needed]), axis=0, return_counts=True)
        missing = rows[counts == 1]
        values, backs = np.append(values, np.full(len(missing), np.nan)), np.append(backs, np.zeros(len(missing)))
        result[k - 2] = (np.concatenate([below, missing]), values, backs)
    return result


def _fill_added(tables: dict[str, Any]) -> None:
    """P(w|h) = b(h) P(w|h') for n-grams that were added, lower orders first."""
    offsets, first, link, probability, backoff = (tables[x] for x in ("offsets", "first", "link", "probability", "backoff"))
    for k in range(2, len(offsets)):
        above, here = slice(*offsets[k - 2 : k].tolist()), slice(*offsets[k - 1 : k + 1].tolist())
        lost = np.flatnonzero(np.isnan(probability[here])) + here.start
        if len(lost):
            parents = np.repeat(np.arange(above.start, above.stop), np.diff(first[above.start : above.stop + 1]))
            probability[lost] = backoff[parents[lost - here.start]] * probability[link[lost]]


def write_arpa(model: BackoffModel, path: str | Path, labels: Sequence[str] | None = None, end: str | None = None) -> Path:
    """Write a model (to a gzip file if the name ends with `.gz`).

    Args:
        labels: V labels without white space; None: the model's words, or ids in figures with the mark as `<s>`.
        end: label of n-grams that end with the document's mark, for models that predict it (see the file's head).

    Raises:
        DataError: when a label is empty, holds white space, or stands for two ids.
        StorageError: when it cannot be written.
    """
    names = list(labels if labels is not None else model.words or _figures(model))
    if len(names) != model.vocabulary:
        raise DataError(f"{len(names)} labels for a vocabulary of {model.vocabulary}")
    bad = next((name for name in names if not name or len(name.split()) != 1 or name != name.strip()), None)
    if bad is not None or len(set(names)) != len(names):
        raise DataError(f"the label {bad!r} is empty or holds white space" if bad is not None else "two ids have one label")
    text = "".join(_written(model, names, end)).encode()
    return write_bytes(path, gzip.compress(text, 6) if Path(path).suffix == ".gz" else text)


def _figures(model: BackoffModel) -> list[str]:
    names = [str(token) for token in range(model.vocabulary)]
    if model.document is not None:
        names[model.document] = "<s>"
    return names


def _written(model: BackoffModel, names: list[str], end: str | None) -> Iterator[str]:
    added = [mark for mark in ("<unk>", "<s>", "</s>") if mark not in names and mark != end]
    closing = end is not None and model.document is not None
    sizes = [model.vocabulary + len(added) + closing, *model.sizes[1:]]
    yield "\\data\\\n" + "".join(f"ngram {order}={size}\n" for order, size in enumerate(sizes, 1))
    with np.errstate(divide="ignore"):
        values, weights = (np.maximum(np.log10(np.asarray(x, dtype=np.float64)), NEVER) for x in (model.probability, model.backoff))
    lasts = np.array([*names[: model.document], end, *names[(model.document or 0) + 1 :]] if closing else names, dtype=object)
    table = np.array(names, dtype=object)
    prefix = table  # text of the n-grams of the order before, by node
    for k in range(1, model.order + 1):
        yield f"\n\\{k}-grams:\n"
        start, stop = model.offsets[k - 1 : k + 1].tolist()
        above = slice(*model.offsets[max(0, k - 2) : max(2, k)].tolist())
        children = np.diff(model.first[above.start : above.stop + 1]) if k > 1 else 0
        parents = np.repeat(np.arange(above.stop - above.start), children)
        kept = []
        for a in range(start, stop, _CHUNK):
            b = min(a + _CHUNK, stop)
            if k == 1:
                grams = table[a:b]
            else:
                last = lasts[model.word[a - model.vocabulary : b - model.vocabulary]]
                grams = prefix[parents[a - start : b - start]] + " " + last
            kept.append(grams)
            if k < model.order:
                rows = zip(values[a:b].tolist(), grams.tolist(), weights[a:b].tolist(), strict=True)
                yield "".join(f"{p:.7g}\t{gram}\t{w:.7g}\n" for p, gram, w in rows)
            else:
                yield "".join(f"{p:.7g}\t{gram}\n" for p, gram in zip(values[a:b].tolist(), grams.tolist(), strict=True))
        prefix = np.concatenate(kept)
        if k == 1:
            weight = "\t0" if model.order > 1 else ""
            yield "".join(f"{NEVER:g}\t{mark}{weight}\n" for mark in added)
            yield f"{values[model.document]:.7g}\t{end}{weight}\n" if closing else ""
    yield "\n\\end\\\n"
