"""`orrery ngram`: indexes of corpora, and what they count. Here: building, and questions about an n-gram.

Questions about whole texts, and the service, are in `ngram_texts`.
"""

from __future__ import annotations

import math
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import typer

from orrery.cli import output

if TYPE_CHECKING:
    import numpy as np

app = typer.Typer(
    help="n-grams of any length: build an index of a corpus, count, predict, find sources, serve.", no_args_is_help=True
)
INDEX = typer.Argument(..., help="Its name, folder or address (http://host:8766/NAME); several with commas are one.")
TEXT = typer.Argument(..., help="The text, encoded with the index's tokenizer; - reads it from standard input.")
IDS = typer.Option(False, "--ids", help="The text is token ids: '12 7 99'.")
JSON = typer.Option(False, "--json", help="For machines.")


def open_index(spec: str) -> Any:
    """An index by name, folder or address."""
    from orrery.ngram.homes import open_any

    return open_any(spec)


def ids_of(index: Any, text: str, as_ids: bool, where: str = "the text") -> np.ndarray:
    """What a user typed as ids: (n,).

    Raises:
        DataError: ids that are none, or outside the vocabulary, or an index without a tokenizer.
    """
    import sys

    import numpy as np

    from orrery.core.errors import DataError
    from orrery.ngram.uses import encode

    if text == "-":
        text = sys.stdin.read()
    if not as_ids:
        ids = encode(index, text)
        if index.tokenizer.unknown_id is not None and (ids == index.tokenizer.unknown_id).any():
            output.remark(f"the tokenizer {index.tokenizer.name} does not know a part of {where}")
        return ids
    words = text.replace(",", " ").split()
    if not all(word.isascii() and word.isdigit() and len(word) < 19 for word in words):
        raise DataError(f"--ids takes whole numbers with spaces between them, not {text[:60]!r}")
    found = np.array([int(word) for word in words], dtype=np.int64)
    if found.size and int(found.max()) >= index.vocab_size:
        raise DataError(
            f"the id {int(found.max())} is outside the index's vocabulary of {index.vocab_size};"
            " was the text encoded with another tokenizer?"
        )
    return found


def shown(index: Any, ids: Any) -> list[str]:
    """What tokens look like."""
    from orrery.ngram.homes import token_text

    return [token_text(index, int(i)) for i in ids]


def visible(token: str) -> str:
    """A token with its edges, on one line."""
    return repr(token)[1:-1].replace("\\\\", "\\").join("‹›")


def said(tokens: list[str]) -> str:
    """Tokens on one line, their edges visible."""
    return " ".join(map(visible, tokens)) or "nothing, which stands before every token"


@app.command("build")
def build(
    corpus: str = typer.Argument(..., help="A registered corpus, a file, a folder, a pattern, FILE.jsonl:FIELD, or TABLE.csv:COLUMN."),
    out: Optional[Path] = typer.Option(None, "--out", help="A folder of your own to put it in."),  # noqa: UP045
    name: str = typer.Option("", "--name", help="The name to find it by; a registered corpus has one already."),
    tokenizer: str = typer.Option("bpe:16384", "--tokenizer", help="bytes, bpe:N, ..., or the path of one."),
    memory: str = typer.Option("4G", "--memory", help="What the build may occupy, all processes together."),
    shards: Optional[int] = typer.Option(None, "--shards", min=1, help="Parts; by default as few as possible."),  # noqa: UP045
    split: str = typer.Option("all", "--split", help="all, train or validation."),
    processes: int = typer.Option(1, "--processes", min=1, help="Sort so many shards at once, each in a process."),
    ray: Optional[str] = typer.Option(None, "--ray", help="Sort the shards on a Ray cluster: its address, or 'local'."),  # noqa: UP045
    sample: Optional[int] = typer.Option(  # noqa: UP045
        None, "--sample", help="Keep the place of every K-th token only: less than half the size, the same answers, slower."
    ),
    force: bool = typer.Option(False, "--force", help="Build anew even if nothing has changed."),
    quiet: bool = typer.Option(False, "--quiet", help="Show no progress."),
    as_json: bool = JSON,
) -> None:
    """Index a corpus. A build that was killed goes on where it stood; an older index answers until the new one is whole.

    Example:  orrery ngram build stdlib     orrery ngram build texts/ --out texts.idx --tokenizer bytes --memory 2G
    """
    from orrery.ngram.builder import parse_size
    from orrery.ngram.parallel import build_over
    from orrery.ngram.sources import open_source

    parse_size(memory)  # before anything is said
    folder, label = _place(corpus, out, name)
    source = open_source(corpus, tokenizer, split, quiet=quiet)
    current = None if force else _current(folder, source, sample)
    if current is not None:
        _report(current, label, 0.0, as_json, fresh=False)
        return
    size = float(source.about["bytes"])
    what = f"{corpus}: {output.size(size)} of text, tokenizer {source.tokenizer.name if source.tokenizer else '-'}"
    if not quiet:
        output.remark(f"{what}; the index goes to '{folder}' and takes at most {memory} of memory to build")
    started = time.perf_counter()
    index = build_over(
        corpus, folder, memory=memory, tokenizer=source.tokenizer, shards=shards, split=split,
        processes=processes, ray=ray, sample=sample, quiet=quiet,
    )  # fmt: skip
    _report(index, label, time.perf_counter() - started, as_json, fresh=True)


def _place(corpus: str, out: Path | None, name: str) -> tuple[Path, str]:
    """Where an index goes, and what it is asked for by."""
    from orrery.core.errors import ConfigError, DataError
    from orrery.core.registry import names
    from orrery.ngram.homes import holds_index, home

    if out is not None and name:
        raise ConfigError("--out and --name exclude one another")
    if out is not None:
        folder = out.expanduser()
        if folder.exists() and not holds_index(folder) and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError(f"'{out}' exists and holds no index; name another folder")
        return folder, str(out)
    if not name and corpus not in names(kind="corpus"):
        from orrery.data.corpora import open_corpus

        open_corpus(corpus)  # says what is wrong with a name that is misspelt
        raise ConfigError(f"say where the index of '{corpus}' goes: --name NAME (found by that name) or --out DIR")
    return home(name or corpus), name or corpus


def _current(folder: Path, source: Any, sample: int | None) -> Any:
    """The index that is there, if it is one of the same text and tokenizer, sampled alike."""
    from orrery.core.errors import OrreryError
    from orrery.ngram.homes import open_steady

    try:
        index = open_steady(folder)
    except OrreryError:
        return None
    known = index.info["tokenizer"] or {}
    same = index.info["source"] == source.about and known.get("hash") == source.tokenizer.hash and index.sample == sample
    return index if same else None


def _facts(index: Any) -> dict[str, Any]:
    size = sum(file.stat().st_size for file in index.folder.rglob("*") if file.is_file())
    return {
        "folder": str(index.folder),
        "tokens": index.tokens,
        "documents": index.documents_total,
        "shards": len(index.shards),
        "vocabulary": index.vocab_size,
        "tokenizer": (index.info["tokenizer"] or {}).get("name"),
        "text_bytes": index.info["text_bytes"],
        "bytes": size,
        "bytes_per_token": round(size / index.tokens, 3),
    }


def _report(index: Any, label: str, seconds: float, as_json: bool, fresh: bool) -> None:
    facts = _facts(index)
    if as_json:
        output.say_json({"name": label, **facts, "seconds": round(seconds, 2), "built": fresh})
        return
    how = f"built in {seconds:.1f} s" if fresh else "is up to date (--force builds it anew)"
    print(f"{label}: {how}")
    print(f"  {facts['tokens']:,} tokens of {facts['documents']:,} documents, {facts['tokenizer']}, {facts['shards']} shard(s)")
    print(f"  {output.size(facts['bytes'])}, {facts['bytes_per_token']:.2f} bytes a token, in '{facts['folder']}'")
    print(f"  ask it:  orrery ngram next {shlex.quote(label)} \"import numpy as\"")


@app.command("list")
def list_indexes(as_json: bool = JSON) -> None:
    """Indexes that have a name, and where they lie.

    Example:  orrery ngram list
    """
    from orrery.core.errors import OrreryError
    from orrery.ngram.homes import named
    from orrery.ngram.index import open_index as open_folder

    found = []
    for name, folder in named().items():
        try:
            found.append({"name": name, **_facts(open_folder(folder))})
        except OrreryError as error:
            output.remark(f"skipped '{name}': {error}")
    if as_json:
        output.say_json(found)
    elif found:
        rows = [(f["name"], f"{f['tokens']:,}", f["tokenizer"] or "", output.size(f["bytes"]), f["folder"]) for f in found]
        output.say_table(("name", "tokens", "tokenizer", "size", "folder"), rows, right=(1, 3))
    else:
        print("no index has a name yet: orrery ngram build stdlib")


@app.command("verify")
def verify(index: str = typer.Argument(..., help="Its name or folder."), as_json: bool = JSON) -> None:
    """Compare every file of an index with its checksum, and every page of its shards.

    Example:  orrery ngram verify stdlib
    """
    from orrery.ngram.homes import locate, open_steady

    opened = open_steady(locate(index))
    opened.verify()
    facts = _facts(opened)
    if as_json:
        output.say_json({"whole": True, **facts})
    else:
        print(f"whole: {opened.folder} ({output.size(facts['bytes'])})")


@app.command("count")
def count(
    index: str = INDEX,
    texts: list[str] = typer.Argument(..., help="n-grams; with --cnf one conjunction: 'a OR b AND c'."),
    ids: bool = IDS,
    cnf: bool = typer.Option(False, "--cnf", help="AND and OR are operators (OR binds closer), as in infini-gram."),
    window: int = typer.Option(100, "--window", min=0, help="Tokens between what a conjunction demands."),
    cap: Optional[int] = typer.Option(None, "--cap", min=1, help="Estimate from about so many places."),  # noqa: UP045
    as_json: bool = JSON,
) -> None:
    """How often n-grams occur. They never reach over the end of a document.

    Example:  orrery ngram count stdlib "import os" "import sys"     orrery ngram count stdlib --cnf "socket AND timeout"
    """
    from orrery.core.errors import ConfigError

    opened = open_index(index)
    if cnf:
        if len(texts) != 1:
            raise ConfigError("--cnf takes one conjunction, such as 'a OR b AND c'")
        clauses = [[ids_of(opened, term, ids).tolist() for term in part.split(" OR ")] for part in texts[0].split(" AND ")]
        found = opened.count_cnf(clauses, window, cap=cap)
        if as_json:
            output.say_json({"query": texts[0], "matches": int(found.matches), "exact": bool(found.exact), "window": window})
        else:
            print(f"{found.matches:,}{'' if found.exact else '  (estimated: --cap)'}")
        return
    encoded = [ids_of(opened, text, ids) for text in texts]
    counts = [opened.count(each) for each in encoded]
    if as_json:
        triples = zip(texts, encoded, counts, strict=True)
        output.say_json([{"text": t, "ids": e.tolist(), "tokens": shown(opened, e), "count": n} for t, e, n in triples])
    elif len(texts) == 1:
        print(f"{counts[0]:,}")
        output.remark(f"of {said(shown(opened, encoded[0]))}")
    else:
        rows = [(f"{n:,}", said(shown(opened, e))) for e, n in zip(encoded, counts, strict=True)]
        output.say_table(("count", "tokens"), rows, right=(0,))


@app.command("prob")
def prob(
    index: str = INDEX,
    text: str = TEXT,
    ids: bool = IDS,
    each: bool = typer.Option(False, "--each", help="Every token given all before it, not only the last one."),
    as_json: bool = JSON,
) -> None:
    """The probability of a text's last token given what stands before it: by the whole context, and by its longest suffix
    that occurs (the ∞-gram; effective n is the length of that suffix).

    Example:  orrery ngram prob stdlib "import numpy as np"     orrery ngram prob stdlib "return self" --each
    """
    from orrery.core.errors import DataError

    opened = open_index(index)
    encoded = ids_of(opened, text, ids)
    if not len(encoded):
        raise DataError("there is no token whose probability could be asked for")
    tokens = shown(opened, encoded)
    if each:
        scores = opened.score(encoded)
        rows = [
            {"token": t, "prob": float(p), "count": int(h), "of": int(o), "effective_n": int(n), "sparse": bool(s)}
            for t, p, n, s, h, o in zip(tokens, *scores, strict=True)
        ]
        if as_json:
            output.say_json(rows)
        else:
            cells = [(repr(r["token"])[1:-1], f"{r['prob']:.4g}", f"{r['count']:,}", f"{r['of']:,}", r["effective_n"], _sparse(r)) for r in rows]
            output.say_table(("token", "∞-gram", "count", "of", "effective n", "sparse"), cells, right=(1, 2, 3, 4))
        return
    whole = opened.prob_info(encoded[:-1], int(encoded[-1]))
    best = opened.inf_prob_info(encoded[:-1], int(encoded[-1]))
    facts = {
        "token": tokens[-1],
        "context": tokens[:-1],
        "prob": None if math.isnan(whole.prob) else whole.prob,
        "count": whole.hits,
        "context_count": whole.total,
        "infgram": {"prob": best.prob, "count": best.hits, "of": best.total, "effective_n": best.n, "sparse": bool(best.sparse)},
    }
    if as_json:
        output.say_json(facts)
        return
    before = f"P({said(tokens[-1:])} | {said(tokens[:-1])})"
    print(f"{before} = {'undefined: the context never occurs' if math.isnan(whole.prob) else _fraction(whole)}")
    more = "; only one token was ever seen behind it" if best.sparse else ""
    print(f"∞-gram, effective n = {best.n}: {_fraction(best)}{more}")


def _fraction(found: Any) -> str:
    return f"{found.prob:.4g}  ({found.hits:,} of {found.total:,})"


def _sparse(row: dict[str, Any]) -> str:
    return "yes" if row["sparse"] else ""


@app.command("next")
def next_tokens(
    index: str = INDEX,
    text: str = TEXT,
    ids: bool = IDS,
    limit: int = typer.Option(20, "--limit", "-n", min=1, help="At most so many, most frequent first."),
    exact: bool = typer.Option(False, "--exact", help="Behind the whole text only, not behind its longest suffix that occurs."),
    as_json: bool = JSON,
) -> None:
    """What follows a text in the corpus: behind its longest suffix that occurs (the ∞-gram), exactly counted.

    Example:  orrery ngram next stdlib "import numpy as"     orrery ngram next stdlib "for i in" --exact -n 5
    """
    import numpy as np

    opened = open_index(index)
    encoded = ids_of(opened, text, ids)
    if exact:
        found = opened.next(encoded)
        n, total = len(encoded), int(found.counts.sum())
    else:
        found = opened.inf_next(encoded)
        n, total = int(found.n), int(found.total)
    order = np.argsort(-found.counts, kind="stable")[:limit]
    chosen, counts = found.ids[order].tolist(), found.counts[order].tolist()
    tokens, context = shown(opened, chosen), shown(opened, encoded[len(encoded) - n :])
    if as_json:
        rows = [
            {"token": t, "id": i, "count": c, "prob": c / total} for t, i, c in zip(tokens, chosen, counts, strict=True)
        ]
        facts = {"context": context, "effective_n": n, "of": len(encoded), "occurrences": total, "different": len(found.ids)}
        output.say_json({**facts, "sparse": len(found.ids) == 1, "exact": True, "next": rows})
        return
    if not total:
        print(f"{said(context)} never occurs; without --exact its longest suffix that does is taken")
        return
    print(f"behind {said(context) or 'anything'}: {total:,} times, followed by {len(found.ids):,} different tokens")
    remark = "sparse: only one token was ever seen here" if len(found.ids) == 1 else ""
    print(f"effective n = {n} of {len(encoded)} tokens{'; ' if remark else ''}{remark}")
    cells = [(visible(t), f"{c:,}", f"{c / total:.4f}") for t, c in zip(tokens, counts, strict=True)]
    output.say_table(("token", "count", "probability"), cells, right=(1, 2))


@app.command("diff")
def diff(
    index: str = typer.Argument(..., help="The index of the whole."),
    removed: str = typer.Argument(..., help="The index of what is taken away, with the same tokenizer."),
    text: str = TEXT,
    ids: bool = IDS,
    limit: int = typer.Option(10, "--limit", "-n", min=1, help="At most so many continuations."),
    as_json: bool = JSON,
) -> None:
    """One corpus without a part of it: what an n-gram's count and continuations are then.

    Example:  orrery ngram build stdlib --split validation --name held-out && orrery ngram diff stdlib held-out "import os"
    """
    import numpy as np

    from orrery.ngram.difference import diff as without
    from orrery.ngram.homes import locate, open_steady

    left = without(open_steady(locate(index)), open_steady(locate(removed)))
    encoded = ids_of(left, text, ids)
    counts = (left.index.count(encoded), left.removed.count(encoded))
    found = left.next(encoded)
    order = np.argsort(-found.counts, kind="stable")[:limit]
    rows = list(zip(shown(left, found.ids[order]), found.counts[order].tolist(), strict=True))
    if as_json:
        after = [{"token": token, "count": number} for token, number in rows]
        facts = {"count": counts[0], "removed": counts[1], "left": counts[0] - counts[1], "next": after}
        output.say_json({"tokens": shown(left, encoded), **facts})
        return
    print(f"{said(shown(left, encoded))}: {counts[0]:,} less {counts[1]:,} leaves {counts[0] - counts[1]:,}")
    if rows:
        output.say_table(("next", "count"), [(visible(t), f"{c:,}") for t, c in rows], right=(1,))
