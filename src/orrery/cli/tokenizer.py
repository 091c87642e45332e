"""`orrery tokenizer`: train one, and see what several make of a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import typer

from orrery.cli import output

app = typer.Typer(help="Tokenizers: train one on a corpus, report what several make of a text.", no_args_is_help=True)


@app.command("train")
def train(
    spec: str = typer.Argument(..., help="bpe:8192, unigram:8192, wordpiece:8192, wordpiece:8192,lower, chars:500."),
    corpus: str = typer.Argument(..., help="A registered corpus, a file, a folder, a pattern, FILE.jsonl:FIELD, or TABLE.csv:COLUMN."),
    out: Path = typer.Option(..., "--out", help="The folder to write."),
    encoding: str = typer.Option("", "--encoding", help="Of a corpus that is not UTF-8: cp1250, latin-1, utf-16 ...; or cp1250:CORPUS."),
    as_json: bool = typer.Option(False, "--json", help="For machines."),
) -> None:
    """Train a tokenizer on a corpus' training side and write it to a folder, which any --tokenizer takes.

    Example:  orrery tokenizer train wordpiece:8192,lower texts/ --out my-tokenizer
    """
    from orrery.core.errors import DataError
    from orrery.core.files import atomic_directory
    from orrery.data.dataset import build_tokenizer
    from orrery.data.encodings import with_encoding

    if out.exists() and not (out / "orrery-tokenizer.json").is_file():
        raise DataError(f"'{out}' exists and holds no tokenizer; name another folder")
    trained = build_tokenizer(spec, with_encoding(corpus, encoding))
    with atomic_directory(out) as folder:
        trained.save(folder)
    if as_json:
        output.say_json(
            {"folder": str(out), "name": trained.name, "vocabulary": trained.vocab_size, "hash": trained.hash}
        )
    else:
        print(f"{trained.name}: {trained.vocab_size} ids, written to {out}")


@app.command("report")
def report(
    tokenizers: list[str] = typer.Argument(
        ..., help="Specs (trained on the first text), folders, tokenizer.json files."
    ),
    text: list[str] = typer.Option(..., "--text", help="A file, a folder, TABLE.csv:COLUMN, or LABEL= before one; once per language."),
    by: Optional[str] = typer.Option(  # noqa: UP045
        None, "--by", help="A column, such as language: --text is TABLE.csv:COLUMN then, and every value of it a text of its own."
    ),
    trained_on: Optional[str] = typer.Option(None, "--train", help="What specs are trained on; else the first text, with --by all."),  # noqa: UP045
    encoding: str = typer.Option("", "--encoding", help="Of texts that are not UTF-8: cp1250, latin-1, utf-16 ...; or LABEL=cp1250:CORPUS."),
    as_json: bool = typer.Option(False, "--json", help="For machines."),
) -> None:
    """Bytes per token, fertility, broken words and unknowns of tokenizers, on the held-out side of each text.

    Example:  orrery tokenizer report bytes bpe:4096 wordpiece:4096 --text pl=polish/ --text tr=turkish.txt

    Example:  orrery tokenizer report bpe:4096 unigram:4096 --text reviews.csv:text --by language
    """
    from orrery.core.errors import DataError
    from orrery.data.corpora import MemoryCorpus
    from orrery.data.dataset import build_tokenizer
    from orrery.data.encodings import with_encoding
    from orrery.data.fertility import compare_tokenizers, held_out, texts_by

    if by is not None:
        if len(text) > 1:
            raise DataError("with --by all texts stand in one table; give --text once")
        texts: dict[str, Any] = dict(texts_by(with_encoding(text[0], encoding), by))
        first: Any = MemoryCorpus([kept for part in texts.values() for kept in part.texts.values()], name=text[0])
    else:
        pairs = [item.partition("=") if "=" in item else (item, "=", item) for item in text]
        if len({label for label, *_ in pairs}) < len(pairs):
            raise DataError("two texts have the same label; write --text LABEL=CORPUS")
        texts = {label: with_encoding(corpus, encoding) for label, _, corpus in pairs}
        first = texts[pairs[0][0]]
    built = [build_tokenizer(spec, with_encoding(trained_on, encoding) if trained_on else first) for spec in tokenizers]
    rows = compare_tokenizers(built, {label: held_out(corpus) for label, corpus in texts.items()})
    if as_json:
        output.say_json([row.to_dict() for row in rows])
        return
    output.say_table(
        ("text", "tokenizer", "ids", "bytes/token", "tokens/word", "broken words", "unknown", "ids used"),
        [
            (
                row.text,
                row.tokenizer,
                row.vocabulary,
                f"{row.bytes_per_token:.3f}",
                f"{row.fertility:.3f}",
                f"{row.continued:.1%}",
                f"{row.unknown:.2%}",
                f"{row.used:.1%}",
            )
            for row in rows
        ],
        right=(2, 3, 4, 5, 6, 7),
    )
