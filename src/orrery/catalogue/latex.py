"""LaTeX in bibliographies, both ways: what people type into titles and names to Unicode, and Unicode to safe LaTeX."""

from __future__ import annotations

import functools
import re
import unicodedata

_ACCENTS = {  # LaTeX accent command -> Unicode combining mark
    "`": "\u0300", "'": "\u0301", "^": "\u0302", "~": "\u0303", "=": "\u0304", "u": "\u0306", ".": "\u0307", '"': "\u0308",
    "r": "\u030a", "H": "\u030b", "v": "\u030c", "d": "\u0323", "c": "\u0327", "k": "\u0328", "b": "\u0331",
}  # fmt: skip
_SYMBOLS = {
    "ss": "ß", "SS": "ẞ", "o": "ø", "O": "Ø", "l": "ł", "L": "Ł", "ae": "æ", "AE": "Æ", "oe": "œ", "OE": "Œ", "aa": "å", "AA": "Å",
    "i": "ı", "j": "ȷ", "dh": "ð", "DH": "Ð", "th": "þ", "TH": "Þ", "dj": "đ", "DJ": "Đ", "ng": "ŋ", "NG": "Ŋ",
    "textendash": "\u2013", "textemdash": "\u2014", "textquoteright": "\u2019", "textquoteleft": "\u2018",
    "textquotedblleft": "\u201c", "textquotedblright": "\u201d", "ldots": "\u2026", "dots": "\u2026", "textellipsis": "\u2026",
    "textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^", "textbar": "|", "textless": "<", "textgreater": ">",
    "textbraceleft": "{", "textbraceright": "}", "textdollar": "$", "textunderscore": "_", "textdegree": "°", "pounds": "£",
    "copyright": "©", "S": "§", "P": "¶", "times": "×", "pm": "±", "cdot": "·", "infty": "∞", "to": "→", "rightarrow": "→",
    "leftarrow": "←", "leq": "≤", "le": "≤", "geq": "≥", "ge": "≥", "neq": "≠", "approx": "≈", "sim": "~", "ell": "ℓ", "sqrt": "√",
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "varepsilon": "ε", "zeta": "ζ", "eta": "η", "theta": "θ",
    "iota": "ι", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ",
    "upsilon": "υ", "phi": "φ", "varphi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω", "Gamma": "Γ", "Delta": "Δ", "Theta": "Θ",
    "Lambda": "Λ", "Xi": "Ξ", "Pi": "Π", "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω",
}  # fmt: skip
_UNMARKED = "&%$#_{}-, "  # characters that a backslash only protects
_SPECIAL = {
    "\\": "{\\textbackslash}", "{": "{\\textbraceleft}", "}": "{\\textbraceright}", "~": "{\\textasciitilde}",
    "^": "{\\textasciicircum}", "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_", '"': "{\\textquotedbl}",
    "\u2013": "{\\textendash}", "\u2014": "{\\textemdash}", "`": "{\\textasciigrave}", "-": "-",
}  # fmt: skip
_SYMBOLS |= {"textquotedbl": '"', "textasciigrave": "`"}
_TOKEN = re.compile(r"\\([A-Za-z]+)\s*|\\(.)|(---|--|``|'')|([{}$])|(~)|(\s+)|([^\\{}$~\s`'-]+|.)", re.DOTALL)


def to_text(source: str) -> str:
    """LaTeX as plain Unicode: accents composed, symbols replaced, braces and math signs dropped, unknown commands too.

    Text without a backslash, brace, dollar sign, tilde, dash pair or quote pair comes back as it is.
    """
    if not re.search(r"[\\{}$~]|--|``|''", source):
        return source
    parts: list[str] = []
    accent = ""
    for match in _TOKEN.finditer(source):
        word, sign, pair, _, tie, space, other = match.groups()
        if word is not None:
            if word in _ACCENTS and word not in _SYMBOLS:
                accent = _ACCENTS[word]
                continue
            text = _SYMBOLS.get(word, "")
        elif sign is not None:
            if sign in _ACCENTS:
                accent = _ACCENTS[sign]
                continue
            text = "" if sign == "-" else sign if sign in _UNMARKED else " " if sign in "\\\n;:!/" else sign
        elif pair is not None:
            text = {"---": "\u2014", "--": "\u2013", "``": "\u201c", "''": "\u201d"}[pair]
        elif tie is not None or space is not None:
            text = " "
        else:
            text = other or ""
        if accent and text:
            base = {"ı": "i", "ȷ": "j"}.get(text[0], text[0])
            text = unicodedata.normalize("NFC", base + accent) + text[1:]
            accent = ""
        parts.append(text)
    return "".join(parts)


def from_text(text: str) -> str:
    """Unicode text as the inside of a BibTeX field that :func:`to_text` reads back unchanged.

    Letters of every script stay as they are (BibTeX files are UTF-8); only what LaTeX would read as markup is written out.
    """
    written = "".join(_SPECIAL.get(letter, letter) for letter in text)
    return re.sub(r"-(?=-)", "-{}", written).replace("''", "'{}'").replace("''", "'{}'")


@functools.cache
def commands() -> frozenset[str]:
    """Names of the commands that :func:`to_text` knows."""
    return frozenset(_SYMBOLS) | frozenset(name for name in _ACCENTS if name.isalpha())
