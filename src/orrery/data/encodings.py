"""Encodings of files by name: looked up, said of a source, and what a decoder could not read marked for counting.

    reviews.csv          UTF-8
    cp1250:reviews.csv   a file, folder or pattern in another encoding, by any name that Python has for it
"""

from __future__ import annotations

import codecs
import os
import re
from encodings.aliases import aliases
from functools import lru_cache

from orrery.core.errors import ConfigError, suggest

UTF_8 = "utf-8"
MARKED = "orrery.marked"  # an error handler: what cannot be decoded becomes a lone surrogate, which no decoder gives otherwise
MARK = re.compile("[\ud800-\udfff]")
_NO_TEXT = {"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined", "mbcs", "oem"}
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.-]*")


def _marked(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\udcff", error.end


codecs.register_error(MARKED, _marked)


def find_encoding(name: str) -> str:
    """The name that Python gives an encoding of text, such as "cp1250" for "windows-1250". A mark at the start of UTF-8 needs no name.

    Raises:
        ConfigError: there is none of that name, or it is none of text.
    """
    found = _lookup(name)
    if found is None:
        known = sorted({alias.replace("_", "-") for pair in aliases.items() for alias in pair} - _NO_TEXT)
        near = suggest(name.strip().lower().replace("_", "-"), [each for each in known if _lookup(each)])
        raise ConfigError(f"there is no encoding '{name}'.{near} Usual ones are utf-8, utf-16, latin-1, iso8859-2, cp1250, cp1252, gb18030")
    return found


@lru_cache(256)
def _lookup(name: str) -> str | None:
    try:
        found = codecs.lookup(name.strip())
        b"a".decode(found.name, "replace")  # which codecs from bytes to bytes refuse
    except (LookupError, ValueError):
        return None
    name = UTF_8 if found.name == "utf-8-sig" else found.name
    return None if name in _NO_TEXT or found.incrementaldecoder is None else name


def split_source(source: str) -> tuple[str, str]:
    """The encoding that a source begins with ("" for none), and the source without it; what exists as it is written is a path."""
    prefix, colon, rest = source.partition(":")
    if not colon or not rest or not _PREFIX.fullmatch(prefix) or os.path.exists(source):
        return "", source
    found = _lookup(prefix)
    return (found, rest) if found else ("", source)


def with_encoding(source: str, encoding: str) -> str:
    """A source that says its encoding: its own, else this one ("": as it is).

    Raises:
        ConfigError: there is no such encoding.
    """
    if not encoding:
        return source
    return source if split_source(source)[0] else f"{find_encoding(encoding)}:{source}"


@lru_cache(64)
def bytewise(encoding: str) -> bool:
    """Whether every byte is a character, and those below 128 ASCII's: text of such an encoding is hardly ever UTF-8 by chance."""
    every = bytes(range(256))
    pairs = b"".join(bytes([first, second]) for first in every for second in every)
    plain = every[:128].decode(encoding, "replace") == every[:128].decode("ascii")
    return plain and len(pairs.decode(encoding, "replace")) == len(pairs)


def is_foreign(line: bytes) -> bool:
    """Whether a line that is not ASCII is UTF-8."""
    if line.isascii():
        return False
    try:
        line.decode(UTF_8)
    except UnicodeDecodeError:
        return False
    return True
