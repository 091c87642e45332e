"""`orrery ngram`, continued: sources of a text, contamination, novelty, duplicates, and the service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import typer

from orrery.cli import output
from orrery.cli.ngram import IDS, INDEX, JSON, TEXT, app, ids_of, open_index, said, shown

CORPUS = typer.Argument(..., help="The texts: a corpus, a file, a folder, a pattern, FILE.jsonl:FIELD, or TABLE.csv:COLUMN.")
SPLIT = typer.Option("all", "--split", help="Of the texts: all, train or validation.")


def texts_of(spec: str, split: str) -> Iterator[tuple[str, str]]:
    """Documents of a corpus, by name.

    Raises:
        ConfigError: an unknown split.
    """
    from orrery.core.errors import ConfigError
    from orrery.data.corpora import open_corpus
    from orrery.data.dataset import assigned
    from orrery.data.text import Tally
    from orrery.ngram.sources import SPLITS

    if split not in SPLITS:
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}, not '{split}'")
    corpus = open_corpus(spec)
    documents: Any = corpus.documents(Tally())
    if split != "all":
        documents = (document for side, document in assigned(corpus, corpus.facts()) if side == split)
    for document in documents:
        yield document.name, "".join(document.pieces(Tally()))


def passage(index: Any, document: Any) -> str:
    """A document's text (or what was asked for of it) on one line."""
    from orrery.ngram.homes import plain_text

    return " ".join(plain_text(index, document.ids).split())


def described(index: Any, document: Any) -> dict[str, Any]:
    """A document, for machines."""
    from orrery.ngram.homes import plain_text

    facts = {"id": document.id, "name": document.name, "tokens": document.length, "times": len(document.places)}
    return {**facts, "places": document.places[:100], "offset": document.offset, "text": plain_text(index, document.ids)}


@app.command("docs")
def docs(
    index: str = INDEX,
    text: str = TEXT,
    ids: bool = IDS,
    limit: int = typer.Option(5, "--limit", "-n", min=1, max=10_000, help="At most so many, in the corpus' order."),
    context: int = typer.Option(20, "--context", min=0, help="Tokens to both sides of the first place in each."),
    as_json: bool = JSON,
) -> None:
    """Documents that hold an n-gram, and where in them it stands.

    Example:  orrery ngram docs stdlib "import socket" -n 3
    """
    from orrery.core.errors import DataError

    opened = open_index(index)
    encoded = ids_of(opened, text, ids)
    if not len(encoded):
        raise DataError("there is no token to look for; every document holds the empty n-gram")
    total = opened.count(encoded)
    found = opened.documents(encoded, limit, context=context)
    if as_json:
        listed = [described(opened, document) for document in found]
        output.say_json({"tokens": shown(opened, encoded), "count": total, "documents": listed})
        return
    print(f"{said(shown(opened, encoded))}: {total:,} times")
    for document in found:
        print(f"\n{document.name}  ({len(document.places)}x, first at token {document.places[0]:,} of {document.length:,})")
        print(f"  {passage(opened, document)}")


@app.command("attribute")
def attribute(
    index: str = INDEX,
    text: str = typer.Argument("", help="The text; - reads it from standard input."),
    file: Optional[Path] = typer.Option(None, "--file", help="A file that holds the text."),  # noqa: UP045
    ids: bool = IDS,
    least: int = typer.Option(8, "--min-length", min=1, help="Tokens of a span at least."),
    limit: int = typer.Option(3, "--limit", "-n", min=0, help="Sources named for each span."),
    as_json: bool = JSON,
) -> None:
    """Longest spans of a text that stand in the corpus word for word, and where.

    Example:  orrery ngram attribute stdlib --file answer.txt --min-length 12
    """
    from orrery.core.errors import ConfigError, StorageError
    from orrery.ngram.homes import plain_text

    if bool(text) == (file is not None):
        raise ConfigError("give a text, or --file FILE")
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise StorageError(f"cannot read '{file}': {error.strerror or error}") from error
    opened = open_index(index)
    encoded = ids_of(opened, text, ids)
    spans = opened.attribute(encoded, least, limit=limit)
    covered = {place for span in spans for place in range(span.start, span.stop)}
    if as_json:
        rows = [
            {
                "start": span.start,
                "stop": span.stop,
                "length": span.stop - span.start,
                "times": span.times,
                "text": plain_text(opened, encoded[span.start : span.stop]),
                "documents": [described(opened, document) for document in span.documents],
            }
            for span in spans
        ]
        output.say_json({"tokens": len(encoded), "covered": len(covered), "spans": rows})
        return
    share = f" ({len(covered) / len(encoded):.0%})" if len(encoded) else ""
    print(f"{len(spans)} spans of {least} tokens or more, {len(covered):,} of {len(encoded):,} tokens{share}")
    for span in spans:
        print(f"\n{span.start}..{span.stop}  {span.stop - span.start} tokens, {span.times:,} times")
        print(f"  {' '.join(plain_text(opened, encoded[span.start : span.stop]).split())}")
        for document in span.documents:
            print(f"    in {document.name} at token {document.places[0]:,}")


@app.command("contamination")
def contamination(
    index: str = typer.Argument(..., help="The index of the training corpus."),
    texts: str = CORPUS,
    split: str = SPLIT,
    n: int = typer.Option(8, "--n", min=1, help="Length of the n-grams, in tokens."),
    share: float = typer.Option(0.7, "--share", min=0.0, max=1.0, help="Share of its n-grams that makes a text contaminated."),
    span: int = typer.Option(50, "--span", min=1, help="Tokens of a verbatim span that do."),
    limit: int = typer.Option(20, "--limit", help="At most so many lines."),
    as_json: bool = JSON,
) -> None:
    """Which texts of an evaluation set stand in a training corpus.

    Example:  orrery ngram contamination stdlib benchmark.jsonl:question --n 8 --share 0.7
    """
    from orrery.ngram.uses import contamination as check

    opened = open_index(index)
    pairs = list(texts_of(texts, split))
    report = check(opened, [text for _, text in pairs], n=n, share=share, span=span)
    facts = report.to_dict()
    for row in facts["documents"]:
        row["name"] = pairs[row["document"]][0]
    if as_json:
        output.say_json(facts)
        return
    dirty = len(report.contaminated)
    print(f"{dirty} of {facts['total']} texts are contaminated ({facts['rate']:.1%}); {facts['token_rate']:.1%} of their tokens")
    worst = sorted(facts["documents"], key=lambda row: (-row["share"], -row["longest"]))[:limit]
    cells = [
        (row["name"], f"{row['tokens']:,}", f"{row['share']:.1%}", row["longest"], "yes" if row["contaminated"] else "")
        for row in worst
    ]
    output.say_table(("text", "tokens", f"{n}-grams in it", "longest span", "contaminated"), cells, right=(1, 2, 3))


@app.command("novelty")
def novelty(
    index: str = INDEX,
    texts: str = CORPUS,
    split: str = SPLIT,
    against: str = typer.Option("", "--against", help="Other texts to measure beside them: held-out human ones, say."),
    as_json: bool = JSON,
) -> None:
    """How much of some texts a corpus does not hold: the share of new n-grams by n, and the longest copied spans.

    Example:  orrery ngram novelty stdlib generated.jsonl:text --against held-out/
    """
    from orrery.ngram.uses import novelty as measure

    opened = open_index(index)
    reports = [measure(opened, [text for _, text in texts_of(spec, split)]) for spec in (texts, against) if spec]
    if as_json:
        output.say_json(reports[0].to_dict() if not against else {"texts": reports[0].to_dict(), "against": reports[1].to_dict()})
        return
    for label, report in zip((texts, against), reports, strict=False):
        about = f"{report.texts} texts of {report.tokens:,} tokens; longest copied span {max(report.longest):,} tokens"
        print(f"{label}: {about}, mean matching suffix {report.mean_suffix:.2f}")
    lengths = sorted({length for report in reports for length in report.new})
    rows = [(length, *(f"{r.new[length]:.1%}" if length in r.new else "" for r in reports)) for length in lengths]
    heads = ("n", f"new in {texts}", *([f"new in {against}"] if against else []))
    output.say_table(heads, rows, right=tuple(range(len(heads))))


@app.command("duplicates")
def duplicates(
    index: str = typer.Argument(..., help="Its name or folder; an index of one shard."),
    least: int = typer.Option(50, "--min-length", min=2, help="Tokens of a span at least."),
    limit: int = typer.Option(20, "--limit", "-n", min=0, help="At most so many spans, most repeated text first."),
    as_json: bool = JSON,
) -> None:
    """What a corpus says twice: how many of its tokens, and which spans.

    Example:  orrery ngram duplicates stdlib --min-length 100
    """
    from orrery.ngram.homes import locate, open_steady, plain_text
    from orrery.ngram.repeats import duplicate_report

    opened = open_steady(locate(index))
    report = duplicate_report(opened, least, limit=limit)
    facts = report.to_dict()
    for row, span in zip(facts["top"], report.top, strict=True):
        row["text"] = plain_text(opened, opened.read(span.places[0], span.places[0] + span.length))
    if as_json:
        output.say_json(facts)
        return
    print(f"{report.covered:,} of {report.tokens:,} tokens ({report.share:.1%}) stand in a span of {least} tokens that occurs again")
    cells = [(row["times"], row["length"], " ".join(row["text"].split())[:120]) for row in facts["top"]]
    if cells:
        output.say_table(("times", "tokens", "begins"), cells, right=(0, 1))


@app.command("serve")
def serve(
    indexes: list[str] = typer.Argument(..., help="Names or folders; NAME=FOLDER says what clients call it."),
    host: str = typer.Option("127.0.0.1", "--host", help="Address to listen on; the default is reached from here only."),
    port: int = typer.Option(8766, "--port", help="Port; 0 takes a free one."),
    allow_host: list[str] = typer.Option([], "--allow-host", help="A further host name to answer to (may be repeated)."),
    seconds: float = typer.Option(10.0, "--timeout", min=0.1, help="Seconds that an answer may take."),
    threads: int = typer.Option(2, "--threads", min=1, help="Long answers worked out at once."),
) -> None:
    """Answer the requests of the public infini-gram API: POST / with {"index", "query_type", "query"}. Read-only.

    Example:  orrery ngram serve stdlib
              curl -d '{"index": "stdlib", "query_type": "count", "query": "import os"}' http://127.0.0.1:8766/
    """
    from orrery.core.errors import ConfigError
    from orrery.ngram.homes import DESCRIPTION, locate
    from orrery.ngram.http import Server, is_loopback
    from orrery.ngram.service import Limits, Service

    found: dict[str, Any] = {}
    for spec in indexes:
        name, equals, where = spec.partition("=")
        whole = (Path(spec).expanduser() / DESCRIPTION).is_file()
        folder = locate(where if equals and not whole else spec)
        label = name if equals and not whole else folder.resolve().name
        if label in found:
            raise ConfigError(f"two indexes are called '{label}'; write NAME=FOLDER")
        if "/" in label or not label:
            raise ConfigError(f"'{label}' cannot be the name of an index in an address")
        found[label] = folder
    service = Service(found, Limits(seconds=seconds, threads=threads))
    server = Server(service, host, port, tuple(allow_host))
    if not is_loopback(host):
        output.remark("others can reach this address: they may ask anything, and read the documents, without a password")

    def ready(running: Any) -> None:
        print(f"answering for {', '.join(found)} at {running.url}/ (Ctrl-C ends it)", flush=True)

    server.run(ready)
