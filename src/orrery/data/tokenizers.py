"""Tokenizers: text to ids and back, each with one id more than text can produce, the document id.

    bytes            UTF-8 bytes 0..255, document id 256
    chars, chars:N   the characters of the training text (the N-2 most frequent), then unknown, then the document id
    bpe:N            byte-pair encoding over bytes, trained here to N ids (default 8192), document id N-1
    unigram:N        a unigram language model over bytes, trained here (default 8192), document id N-1
    wordpiece:N      WordPiece with BERT's marks, trained here (:mod:`orrery.data.wordpiece`)
    PATH             a `tokenizer.json` of the `tokenizers` library, or a folder that holds one or a saved tokenizer

Text never produces the document id: markup such as `<|endoftext|>` in a text is encoded as the characters it is made of.
All but `chars` (for characters it has not seen) and some loaded files give every text back unchanged; `lossless` says so.

Before `bpe` and `unigram` learn, text is cut into words with the space before them, numbers, and runs of other signs, as GPT-2's is;
but marks such as the vowels of Devanagari, and the joiners of Persian and Indic scripts, belong to their word.

Papers: byte-pair encoding 1508.07909; unigram 1804.10959; byte-level vocabularies as in GPT-2.
"""

from __future__ import annotations

import functools
import hashlib
import json
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from orrery.core.config import config_hash
from orrery.core.errors import DataError
from orrery.core.files import write_json, write_text
from orrery.core.registry import register

if TYPE_CHECKING:
    import numpy as np

DESCRIPTION = "orrery-tokenizer.json"
LIBRARY_FILE = "tokenizer.json"
FORMAT = 1
LARGEST = 1 << 20  # ids
DEFAULT = 8192
LONG, PART = 1 << 20, 1 << 17  # characters: a text beyond the first is encoded in parts of the second
ROLES = {  # role -> how files spell its mark, the commonest first
    "pad": ("[PAD]", "<pad>"),
    "unknown": ("[UNK]", "<unk>"),
    "class": ("[CLS]", "<s>", "<cls>"),
    "separator": ("[SEP]", "</s>", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
}
LONGEST = 64  # bytes of a piece of `unigram`: its papers' sixteen characters in any script
JOINERS = "\u200c\u200d"  # signs of format inside words
PIECES = (
    rf"'(?:[sdmt]|ll|ve|re)| ?[\p{{L}}\p{{M}}{JOINERS}]+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{M}}\p{{N}}{JOINERS}]+|\s+(?!\S)|\s+"
)
_UNKNOWN = "\ufffd"
_INSIDE = JOINERS + _UNKNOWN
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]", "<|end|>", "[SEP]")
_SAMPLE = "  The  quick\n\n\tbrown — fox: ÀÉ ß 漢字 \U0001f389 \x00 1234567 İi ﬁ e\u0301\r\n"


class Frame(NamedTuple):
    """The marks of texts: before the first, between both of a pair, and behind the last."""

    front: tuple[int, ...]
    between: tuple[int, ...]
    end: int


class Tokenizer(ABC):
    """Text to ids and back."""

    name: str
    vocab_size: int  # ids are 0 .. vocab_size - 1
    doc_id: int  # starts every document of a token stream; never produced by text
    lossless: bool = True  # decode(encode(text)) == text for every text
    unknown_id: int | None = None
    rule: str = ""  # of one that is trained here: how text is prepared for that

    @property
    def marks(self) -> dict[str, int]:
        """Ids by role that text never produces, such as `mask` (:mod:`orrery.data.marks`); the document id is not listed."""
        return {}

    @property
    def frame(self) -> Frame | None:
        """The marks that its file puts around a pair of texts; None where it says none, or not all of them."""
        return None

    def word_edges(self) -> tuple[np.ndarray, np.ndarray]:
        """(begins, ends) (V,) bool: whether an id's text begins, ends inside a word; two ids are of one word when the first
        ends and the second begins so."""
        import numpy as np

        pieces = [self.decode([number]) for number in range(self.vocab_size)]
        inside = [
            [piece[place].isalnum() or unicodedata.category(piece[place])[0] == "M" or piece[place] in _INSIDE if piece else False
             for piece in pieces]
            for place in (0, -1)
        ]
        return np.array(inside[0]), np.array(inside[1])

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, (n,), in the smallest unsigned type that holds the vocabulary."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """:meth:`encode` of several texts."""
        return [self.encode(text) for text in texts]

    @abstractmethod
    def encode_places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """:meth:`encode`, and the characters [first, last) of the text, (n,2) int64, that each id comes from."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids. Document ids give nothing; bytes that are no UTF-8 and ids out of range give U+FFFD."""
        stream = self.stream()
        return stream.push(ids) + stream.finish()

    @abstractmethod
    def stream(self) -> Stream:
        """A decoder for ids that arrive one by one."""

    @abstractmethod
    def _content(self) -> dict[str, Any]:
        """Everything that decides what the tokenizer does, as JSON."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned integer type that holds every id, little-endian."""
        import numpy as np

        return np.dtype("u1" if self.vocab_size <= 256 else "<u2" if self.vocab_size <= 65536 else "<u4")

    @property
    def hash(self) -> str:
        """Sixteen hex digits; equal hashes encode every text equally."""
        canonical = json.dumps(self._content(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def save(self, folder: str | Path) -> None:
        """Write `orrery-tokenizer.json` (and the library's `tokenizer.json` where there is one) into a folder."""
        content = self._content()
        inner = content.get("base", content)
        if (library := inner.pop("library", None)) is not None:
            write_text(Path(folder) / LIBRARY_FILE, library)
            inner["library_check"] = config_hash(library)
        described = {"format": FORMAT, "name": self.name, "hash": self.hash, **content}
        write_json(Path(folder) / DESCRIPTION, {**described, "check": config_hash(described)})

    def __repr__(self) -> str:
        return f"<tokenizer {self.name}: {self.vocab_size} ids, {self.hash}>"


class Stream(ABC):
    """Decodes ids as they come: text is handed out as soon as later ids cannot change it."""

    @abstractmethod
    def push(self, ids: Iterable[int]) -> str:
        """The text that the next ids complete; the start of an unfinished character is kept back."""

    @abstractmethod
    def finish(self) -> str:
        """What was kept back: an unfinished character is U+FFFD."""


class _ByteStream(Stream):
    """For tokenizers whose ids are byte strings; the `silent` id (the document's) gives nothing."""

    def __init__(self, table: Sequence[bytes], silent: int) -> None:
        import codecs

        self._table = [*table, *[_UNKNOWN.encode()] * max(0, silent + 1 - len(table))]
        self._table[silent] = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        known = [token if 0 <= token < len(self._table) else -1 for token in _listed(ids)]
        return self._decoder.decode(
            b"".join([self._table[token] if token >= 0 else _UNKNOWN.encode() for token in known])
        )

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes. Lone surrogates, which UTF-8 cannot hold, become `?`."""

    name, vocab_size, doc_id = "bytes", 257, 256

    @classmethod
    def build(cls, argument: str, texts: Iterable[str]) -> ByteTokenizer:
        """`bytes` takes no argument and looks at no text."""
        if argument:
            raise DataError(f"the tokenizer 'bytes' takes no size, but ':{argument}' was given")
        return cls()

    def encode(self, text: str) -> np.ndarray:
        """The bytes of the text, (n,)."""
        import numpy as np

        return np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8).astype(self.dtype)

    def encode_places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Of every byte its character."""
        import numpy as np

        ids = self.encode(text)
        first = np.cumsum((ids & 0xC0) != 0x80) - 1
        return ids, np.stack([first, first + 1], 1).astype(np.int64)

    def stream(self) -> Stream:
        """A decoder for ids that arrive one by one."""
        return _ByteStream([bytes([value]) for value in range(256)], self.doc_id)

    def _content(self) -> dict[str, Any]:
        return {"kind": "bytes"}


class CharTokenizer(Tokenizer):
    """One id per character. Characters that are not in the alphabet become one unknown id and are lost."""

    lossless = False

    def __init__(self, alphabet: str, name: str = "chars") -> None:
        import numpy as np

        self.name, self.alphabet = name, alphabet
        self.unknown_id, self.doc_id, self.vocab_size = len(alphabet), len(alphabet) + 1, len(alphabet) + 2
        self._table = np.full(0x110000, self.unknown_id, dtype=self.dtype)
        self._table[_codepoints(alphabet)] = np.arange(len(alphabet))

    @classmethod
    def build(cls, argument: str, texts: Iterable[str]) -> CharTokenizer:
        """The alphabet of `texts`, in the order of Unicode; with an argument N its N-2 most frequent characters."""
        import numpy as np

        limit = _size(argument, "chars", least=3) - 2 if argument else LARGEST
        counts = np.zeros(0x110000, dtype=np.int64)
        for text in texts:
            if len(text) > 100_000:
                counts += np.bincount(_codepoints(text), minlength=0x110000)
            else:
                found, times = np.unique(_codepoints(text), return_counts=True)
                counts[found] += times
        frequent = np.argsort(-counts, kind="stable")[: min(limit, int((counts > 0).sum()))]
        return cls("".join(map(chr, sorted(frequent.tolist()))), f"chars:{argument}" if argument else "chars")

    def encode(self, text: str) -> np.ndarray:
        """One id per character, (n,)."""
        return self._table[_codepoints(text)]

    def encode_places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Of every character itself."""
        import numpy as np

        first = np.arange(len(text), dtype=np.int64)
        return self.encode(text), np.stack([first, first + 1], 1)

    def stream(self) -> Stream:
        """A decoder for ids that arrive one by one."""
        return _ByteStream([char.encode() for char in self.alphabet], self.doc_id)

    def _content(self) -> dict[str, Any]:
        return {"kind": "chars", "alphabet": self.alphabet}


class LibraryTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library, from its JSON text.

    Args:
        library: the JSON text.
        doc_id: id of the document mark; None: the file's own special end mark, or else one id behind the last.
    """

    def __init__(self, library: str, name: str, doc_id: int | None = None) -> None:
        import tokenizers

        try:
            self._inner = tokenizers.Tokenizer.from_str(library)
        except Exception as error:  # the library raises bare Exception for anything it cannot parse
            raise DataError(f"'{name}' is not a tokenizer of the tokenizers library: {str(error)[:200]}") from error
        self._inner.no_truncation()
        self._inner.no_padding()
        self._inner.encode_special_tokens = True  # a text that spells a mark is text, never the mark
        self._library = self._inner.to_str()
        self.name = name
        size = 1 + max(self._inner.get_vocab(with_added_tokens=True).values(), default=-1)
        if not 0 < size <= LARGEST:
            raise DataError(f"'{name}' has {size} ids; between 1 and {LARGEST} are supported")
        self.doc_id = doc_id if doc_id is not None else _end_mark(self._inner, size)
        self.vocab_size = max(size, self.doc_id + 1)
        self._bytes = _byte_table(json.loads(self._library), self.vocab_size)
        whole = self._bytes is not None and {bytes([value]) for value in range(256)} <= set(self._bytes)
        self.lossless = whole and self.decode(self.encode(_SAMPLE)) == _SAMPLE
        self.unknown_id = self.marks.get("unknown")

    @functools.cached_property
    def marks(self) -> dict[str, int]:
        """The roles that the file's own marks play."""
        spelled = {token.content: number for number, token in self._inner.get_added_tokens_decoder().items()}
        found = {role: [spelled[mark] for mark in known if mark in spelled] for role, known in ROLES.items()}
        return {role: ids[0] for role, ids in found.items() if ids}

    @functools.cached_property
    def frame(self) -> Frame | None:
        """As the file's post-processor says: RoBERTa's and BART's put two marks between texts, BERT's puts one."""
        pair = self._inner.encode("a", "a")
        inside = [place for place, side in enumerate(pair.sequence_ids) if side == 0]
        second = [place for place, side in enumerate(pair.sequence_ids) if side == 1]
        if not inside or not second:
            return None
        front, between = pair.ids[: inside[0]], pair.ids[inside[-1] + 1 : second[0]]
        end = pair.ids[second[-1] + 1 :]
        return Frame(tuple(front), tuple(between), end[0]) if front and between and len(end) == 1 else None

    def word_edges(self) -> tuple[np.ndarray, np.ndarray]:
        """As of any tokenizer; of WordPiece, whose pieces say themselves that they go on."""
        import numpy as np

        library = json.loads(self._library)
        if (library.get("decoder") or {}).get("type") != "WordPiece":
            return super().word_edges()
        pieces = [self._inner.id_to_token(number) or "" for number in range(self.vocab_size)]
        return np.array([piece.startswith("##") for piece in pieces]), np.ones(self.vocab_size, dtype=bool)

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, (n,)."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of several texts, on all cores; one of more than a million characters is read a part at a time."""
        import numpy as np

        if any(len(text) > LONG for text in texts):
            parts = (self.encode_batch(list(_parts(text))) for text in texts)
            return [np.concatenate(each) if each else np.zeros(0, self.dtype) for each in parts]
        clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        batch = self._inner.encode_batch_fast(clean, add_special_tokens=False)
        return [np.asarray(one.ids, dtype=self.dtype) for one in batch]

    def encode_places(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """As the library says it; a space before a word may belong to its first id."""
        import numpy as np

        clean = text.encode("utf-8", "replace").decode("utf-8")
        ids, places, start = [], [], 0
        for part in _parts(clean) if len(clean) > LONG else (clean,):
            one = self._inner.encode(part, add_special_tokens=False)
            ids.append(np.asarray(one.ids, dtype=self.dtype))
            places.append(np.array(one.offsets, dtype=np.int64).reshape(-1, 2) + start)
            start += len(part)
        return np.concatenate(ids), np.concatenate(places)

    def stream(self) -> Stream:
        """A decoder for ids that arrive one by one."""
        return (
            _ByteStream(self._bytes, self.doc_id)
            if self._bytes is not None
            else _LibraryStream(self._inner, self.doc_id, self.vocab_size)
        )

    def _content(self) -> dict[str, Any]:
        return {"kind": "library", "doc_id": self.doc_id, "library": self._library}


class _LibraryStream(Stream):
    """For decoders that look at neighbours: what two decodings, with and without the newest ids, agree upon is final."""

    def __init__(self, inner: Any, doc_id: int, size: int) -> None:
        self._inner, self._doc_id, self._size = inner, doc_id, size
        self._ids: list[int] = []
        self._shown = 0  # ids whose text was handed out
        self._start = 0  # ids before this one no longer matter for the text to come

    def push(self, ids: Iterable[int]) -> str:
        text = ""
        for token in _listed(ids):
            if token == self._doc_id:
                text += self.finish()
            elif 0 <= token < self._size:
                self._ids.append(token)
                text += self._advance()
            else:
                text += self.finish() + _UNKNOWN
        return text

    def _advance(self, final: bool = False) -> str:
        before = self._inner.decode(self._ids[self._start : self._shown], skip_special_tokens=False)
        after = self._inner.decode(self._ids[self._start :], skip_special_tokens=False)
        if len(after) <= len(before) or (after.endswith(_UNKNOWN) and not final):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return after[len(before) :]

    def finish(self) -> str:
        text = self._advance(final=True)
        self._ids, self._shown, self._start = [], 0, 0
        return text


class BPETokenizer(LibraryTokenizer):
    """Byte-pair encoding over bytes, trained here (1508.07909): merge the most frequent neighbours until N ids."""

    rule = PIECES

    @classmethod
    def build(cls, argument: str, texts: Iterable[str]) -> BPETokenizer:
        """Train to `argument` ids (default 8192), the document id included; fewer when the text has no more merges."""
        from tokenizers import models, trainers

        size = _size(argument or str(DEFAULT), "bpe", least=257)
        trainer = trainers.BpeTrainer(
            vocab_size=size - 1, initial_alphabet=sorted(_alphabet().values()), show_progress=False
        )
        inner = _train(models.BPE(), trainer, texts)
        return cls(inner.to_str(), f"bpe:{size}", inner.get_vocab_size())


class UnigramTokenizer(LibraryTokenizer):
    """A unigram language model over bytes, trained here (1804.10959): of all segmentations the most probable."""

    rule = PIECES

    @classmethod
    def build(cls, argument: str, texts: Iterable[str]) -> UnigramTokenizer:
        """Train to `argument` ids (default 8192), the document id included."""
        from tokenizers import models, trainers

        size = _size(argument or str(DEFAULT), "unigram", least=258)
        trainer = trainers.UnigramTrainer(
            vocab_size=size - 1, initial_alphabet=sorted(_alphabet().values()), max_piece_length=LONGEST, show_progress=False
        )
        library = json.loads(_train(models.Unigram(), trainer, texts).to_str())
        library["model"]["vocab"] = _settled(library["model"]["vocab"])
        return cls(json.dumps(library, ensure_ascii=False), f"unigram:{size}", len(library["model"]["vocab"]))


def _parts(text: str) -> Iterator[str]:
    """A text in order, cut before spaces between words, where every tokenizer here cuts as well; inside a word where that is longer."""
    start = 0
    while len(text) - start > PART:
        stop = at = start + PART
        while (at := text.rfind(" ", start + 1, at)) > 0:
            if not text[at - 1].isspace() and not text[at + 1].isspace():
                stop = at
                break
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]


def _settled(vocab: list[list[Any]]) -> list[list[Any]]:
    """Unigram pieces with scores that do not depend on the trainer's summation order, which changes from run to run.

    Scores keep three decimals (the noise is 1e-10) and equal ones are ordered by piece. The bytes that the trainer adds
    for completeness get scores 1e-4 apart, from the lowest up, in an arbitrary order; here they all get the lowest. No
    segmentation depends on that: a byte without a piece of its own length has no rival.
    """
    lowest = min(score for piece, score in vocab if len(piece) == 1)
    added = lowest + 1e-4 * 256 + 1e-6
    settled = [[piece, round(lowest if len(piece) == 1 and score <= added else score, 3)] for piece, score in vocab]
    return sorted(settled, key=lambda entry: (-entry[1], entry[0]))


def _train(model: Any, trainer: Any, texts: Iterable[str]) -> Any:
    from tokenizers import Regex, decoders, pre_tokenizers
    from tokenizers import Tokenizer as Inner

    inner = Inner(model)
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PIECES), "isolated"), bytewise])
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(texts, trainer)
    return inner


def _alphabet() -> dict[int, str]:
    """Byte -> the printable character that stands for it in byte-level vocabularies (GPT-2's table).

    Bytes that are printable in Latin-1 stand for themselves; the others take the characters from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {value: chr(value) for value in printable} | {value: chr(0x100 + rank) for rank, value in enumerate(others)}


def _byte_table(library: dict[str, Any], size: int) -> list[bytes] | None:
    """The bytes of every id of a byte-level tokenizer; None when its decoder is of another sort."""
    if (library.get("decoder") or {}).get("type") != "ByteLevel":
        return None
    back = {char: value for value, char in _alphabet().items()}
    vocab = library["model"]["vocab"]
    pairs = (
        enumerate(entry[0] for entry in vocab)
        if isinstance(vocab, list)
        else ((token, piece) for piece, token in vocab.items())
    )
    table = [b""] * size
    for token, piece in pairs:
        if all(char in back for char in piece):
            table[token] = bytes(back[char] for char in piece)
        else:
            table[token] = piece.encode()
    for added in library.get("added_tokens", []):
        table[added["id"]] = b"" if added["special"] else added["content"].encode()
    return table


def _end_mark(inner: Any, size: int) -> int:
    """The file's special end-of-text mark; else a fresh id. A mark that is not special could be produced by text."""
    special = {token.content: number for number, token in inner.get_added_tokens_decoder().items() if token.special}
    return next((special[mark] for mark in _ENDS if mark in special), size)


def _size(argument: str, kind: str, least: int) -> int:
    if not argument.isdecimal() or not least <= int(argument) <= LARGEST:
        raise DataError(
            f"'{kind}:{argument}': the size of the vocabulary must be a whole number from {least} to {LARGEST}"
        )
    return int(argument)


def _listed(ids: Any) -> list[int]:
    """Ids as Python integers, from a list, an array or a tensor (n,)."""
    return ids.tolist() if hasattr(ids, "tolist") else list(ids)


def _codepoints(text: str) -> np.ndarray:
    import numpy as np

    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def parse_spec(spec: str) -> tuple[str, str]:
    """Kind and argument of a spec: `"bpe:8192"` gives `("bpe", "8192")`."""
    kind, _, argument = spec.partition(":")
    return kind, argument


def iter_decoded(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """The text of ids that arrive one by one, as it becomes final."""
    stream = tokenizer.stream()
    for token in ids:
        if text := stream.push([token]):
            yield text
    if text := stream.finish():
        yield text


register("bytes", tokenizer="ByteTokenizer", summary="UTF-8 bytes; 257 ids, nothing to train, nothing unknown")
register("chars", tokenizer="CharTokenizer", summary="characters of the training text; unseen ones are lost")
register(
    "bpe",
    tokenizer="BPETokenizer",
    summary="byte-pair encoding over bytes, trained here: bpe:8192",
    paper="1508.07909",
    year=2015,
)
register(
    "unigram",
    tokenizer="UnigramTokenizer",
    summary="unigram language model over bytes, trained here: unigram:8192",
    paper="1804.10959",
    year=2018,
)
