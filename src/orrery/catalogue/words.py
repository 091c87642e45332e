"""Text as words for everything that is not the full-text index: topics, the semantic embedding, suggestions.

Words are runs of letters and digits of the text in compatibility form without accents, in lower case. `stem` strips one
English ending, so that `distilled` and `distillation` meet; it is shorter than Porter's rules, which the full-text index
applies on its own, and quick, since every distinct word is stemmed once.
"""

from __future__ import annotations

import re
import unicodedata

_WORD = re.compile(r"[^\W_]+")
_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")
_STOP = """a about above after again all also an and any are as at be because been before being below between both but by can
    cannot could did do does doing down during each etc few for from further had has have having he her here his how however
    i if in into is it its itself just made make makes making may me might more most must my no nor not of off on once one
    only or other our out over own per s same she should so some such than that the their them then there these they this
    those through thus to too towards two under until up upon us use used uses using very via was we were what when where
    whether which while who whom whose why will with within without would yet you your"""
STOP = frozenset(_STOP.split())
# Longest first; what is left keeps at least four letters (three before a plural).
_ENDINGS = (
    "izations", "isations", "ization", "isation", "ational", "atively", "ations", "ators", "ation", "ative", "ating", "ator",
    "izers", "izing", "izer", "ized", "ises", "ising", "izes", "ize", "ments", "ment", "ively", "edly", "ingly", "ities",
    "ically", "ical", "ions", "ings", "ible", "able", "ness", "ated", "ates", "ion", "ing", "ers", "ors", "ies", "ity", "ive", "ful", "ate",
    "ics", "ic", "ed", "er", "or", "ly", "es", "s", "y", "e",
)  # fmt: skip
_BY_LAST = {last: tuple(each for each in _ENDINGS if each[-1] == last) for last in {each[-1] for each in _ENDINGS}}
MOST_STEMS = 1 << 18  # words whose stems are remembered: some 40 MB
LONGEST = 40  # letters of a word that is still a word; longer runs are data


def fold(text: str) -> str:
    """Compatibility form, without accents, in lower case; plain ASCII takes the short way."""
    if text.isascii():
        return text.lower()
    return _BEYOND_ASCII.sub(_without_marks, unicodedata.normalize("NFKD", text)).casefold()


def _without_marks(run: re.Match[str]) -> str:
    return "".join(letter for letter in run[0] if not unicodedata.combining(letter))


def words(text: str) -> list[str]:
    """The words of a text in order, stop words included."""
    return [word for word in _WORD.findall(fold(text)) if len(word) <= LONGEST]


def stem(word: str) -> str:
    """`word` without one English ending: distillation, distilled and distilling are all `distil`."""
    if len(word) < 4 or not word.isalpha() or not word.isascii():
        return word
    if word.endswith(("ss", "us", "is")):
        return word
    for ending in _BY_LAST.get(word[-1], ()):
        if word.endswith(ending):
            rest = word[: -len(ending)]
            if len(rest) >= (3 if ending in ("s", "es", "ies", "y") else 4):
                return _undouble(rest)
    return word


def _undouble(word: str) -> str:
    return word[:-1] if word[-1] == word[-2] and word[-1] in "bdglmnprt" else word


class _Stems(dict[str, str]):
    """Word -> stem, made when a word is first met; nothing for words that carry no meaning. Begun anew when it is large."""

    def __missing__(self, word: str) -> str:
        if len(self) >= MOST_STEMS:
            self.clear()
        found = self[word] = "" if word in STOP or len(word) > LONGEST else stem(word)
        return found


_stems = _Stems()


def stems(text: str) -> list[str]:
    """Stems of the words that carry meaning, in order."""
    known = _stems
    return [found for word in _WORD.findall(fold(text)) if (found := known[word])]
