"""WordPiece: words cut into the longest known pieces from the left, as BERT reads text.

    wordpiece:N          text keeps its case and accents; N ids with the marks
    wordpiece:N,lower    lower case, accents removed; marks that write vowels (of Devanagari, Thai, ...) or voicing (of kana) stay,
                         which BERT's uncased models lose

Words are split at white space and punctuation, Chinese characters stand alone, pieces inside a word begin with `##`.
What cannot be cut into known pieces is one `[UNK]`; white space is not kept. Ids 0 to 4 are [PAD], [UNK], [CLS], [SEP]
and [MASK]; [CLS] is the document id, since both stand before a text.

Papers: 1609.08144, section 4.1; 1810.04805. Training counts pieces as byte-pair encoding does (the library's trainer), not
by the likelihood of the first paper, whose trainer was never published.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from orrery.core.errors import DataError
from orrery.core.registry import register
from orrery.data.tokenizers import DEFAULT, LARGEST, ROLES, LibraryTokenizer

MARKS = tuple(spelled[0] for spelled in ROLES.values())
LEAST = 64
ACCENTS = "[\\p{Mn}&&[\\p{Inherited}\\p{Latin}\\p{Greek}\\p{Cyrillic}\\p{Hebrew}\\p{Arabic}\\p{Syriac}]&&[^\u3099\u309a]]"


class WordPieceTokenizer(LibraryTokenizer):
    """WordPiece with BERT's normalisation and marks, trained here."""

    rule = ACCENTS

    @classmethod
    def build(cls, argument: str, texts: Iterable[str]) -> WordPieceTokenizer:
        """Train to `argument` ids (default 8192), the marks included; `,lower` behind the number folds case."""
        from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Inner

        number, _, form = argument.partition(",")
        if form not in ("", "lower") or not (number or "0").isdecimal():
            raise DataError(f"'wordpiece:{argument}': say wordpiece:N or wordpiece:N,lower, N a whole number")
        size = int(number or DEFAULT)
        if not LEAST <= size <= LARGEST:
            raise DataError(f"'wordpiece:{argument}': the size must be a whole number from {LEAST} to {LARGEST}")
        inner = Inner(models.WordPiece(unk_token=MARKS[1]))
        clean: Any = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
        if form:
            bare = normalizers.NFD(), normalizers.Replace(Regex(ACCENTS), ""), normalizers.NFC()
            clean = normalizers.Sequence([clean, *bare, normalizers.Lowercase()])
        inner.normalizer = clean
        inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        inner.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=list(MARKS), show_progress=False)
        inner.train_from_iterator(texts, trainer)
        return cls(inner.to_str(), f"wordpiece:{size}" + (",lower" if form else ""), MARKS.index("[CLS]"))


register(
    "wordpiece",
    tokenizer="WordPieceTokenizer",
    summary="WordPiece with BERT's marks, trained here: wordpiece:8192 or wordpiece:8192,lower",
    paper="1609.08144",
    year=2016,
)
