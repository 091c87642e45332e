"""Answers that are no page: a status and one sentence for the reader."""

from __future__ import annotations

from orrery.core.errors import OrreryError

TITLES = {
    400: "This cannot be understood",
    401: "Who is reading?",
    403: "Not from here",
    404: "Nothing here",
    405: "Not this way",
    408: "That took too long",
    409: "Not now",
    411: "How long is it?",
    413: "Too large",
    414: "Too long an address",
    415: "Of an unknown kind",
    421: "Another server was meant",
    422: "Something is missing",
    429: "Too fast",
    431: "Too long a head",
    500: "A defect of ours",
    503: "Busy",
}


DEFECT = "The server met a defect of its own. It is in its log; the page may work again when loaded anew."


class Refusal(OrreryError):
    """A request that is answered with a status and a sentence.

    Args:
        status: of HTTP.
        sentence: what was wrong and what to do.
        again: seconds after which it may be tried again.
    """

    def __init__(self, status: int, sentence: str, again: float | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.again = status, sentence, again

    def headers(self) -> dict[str, str]:
        """`Retry-After`, when there is a time."""
        return {} if self.again is None else {"Retry-After": str(max(1, round(self.again + 0.5)))}
