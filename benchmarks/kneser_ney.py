"""Modified Kneser-Ney beside KenLM on the same corpus in one run: building, scoring, next-token distributions.

    python benchmarks/kneser_ney.py CORPUS --tokenizer bpe:16384 --lmplz PATH/TO/kenlm/build/bin [--tokens 10000000]

Both count the token ids of the training split, one sentence per document; KenLM reads them as text. A build is one process:
ours from the token file to tables on disk, `lmplz` from text to its ARPA file (`build_binary` apart). Memory is the peak
resident size of that process. Scores are of held-out documents, cut into sentences of 50 tokens: KenLM's `Model.score` per
sentence on a binary `probing` file, ours in one batch, from ids and from the same strings. A distribution is every token's
probability behind one context. Perplexities have to agree to 1e-4, else the run fails. Needs KenLM's programs and its Python
module, neither of which can be installed as a package with the builder.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SENTENCE, CONTEXTS = 50, 200
HERE = Path(__file__).resolve()


def main() -> None:
    """Run both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--tokenizer", default="bpe:16384")
    parser.add_argument("--lmplz", type=Path, required=True, help="folder of lmplz and build_binary")
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=1 << 62)
    parser.add_argument("--memory", nargs="*", default=["80%"], help="lmplz -S; of several, all are built and the first is compared")
    parser.add_argument("--folder", type=Path, help="keep the files here; a second run takes them up")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "facts.json").exists():
            prepare(arguments, folder)
        facts = json.loads((folder / "facts.json").read_text())
        rows = {**facts, **measure(arguments, folder, facts)}
    print(json.dumps(rows, indent=1))
    table(rows)


def prepare(arguments: argparse.Namespace, folder: Path) -> None:
    """The same text twice: ids for us (0 is <unk>, 1 <s>, 2 </s>, then the tokens that were seen), words for KenLM."""
    import orrery.data

    data = orrery.data.prepare(arguments.corpus, arguments.tokenizer, verify=False)
    stop = int(np.searchsorted(np.asarray(data.train.offsets), arguments.tokens, side="right")) - 1
    documents = min(max(1, stop), data.train.documents)
    text = np.asarray(data.train.read(0, int(data.train.offsets[documents]))).astype(np.int32)
    seen = np.bincount(text, minlength=data.tokenizer.vocab_size) > 0
    seen[data.tokenizer.doc_id] = False
    names = np.where(seen, np.cumsum(seen) + 2, 0).astype(np.int32)  # KenLM knows no token that it has not seen
    text = names[text]  # the marks of documents are 0 now
    marks = np.flatnonzero(text == 0)
    stream = np.insert(text, marks[1:], 2)
    stream[stream == 0] = 1
    np.save(folder / "train.npy", np.append(stream, 2).astype(np.int32))
    with open(folder / "train.txt", "w") as file:
        for start, end in zip(marks, np.append(marks[1:], len(text)), strict=True):
            file.write(" ".join(map(str, text[start + 1 : end].tolist())) + "\n")
    held = np.asarray(data.validation.read(0, min(len(data.validation), 500_000)))
    held = names[held[held != data.validation.doc_id]].astype(np.int64)
    lines = held[: len(held) // SENTENCE * SENTENCE].reshape(-1, SENTENCE)
    np.save(folder / "held.npy", lines)
    facts = {"corpus": Path(arguments.corpus).name, "tokenizer": data.tokenizer.name, "vocabulary": int(seen.sum()) + 3,
             "tokens": len(text) - documents, "documents": documents, "held-out tokens": lines.size}  # fmt: skip
    (folder / "facts.json").write_text(json.dumps(facts))


def build(folder: str, vocabulary: str, order: str) -> None:
    """One process: count, smooth, write."""
    from orrery.ngram.counts import KneserNey

    begin = time.perf_counter()
    tokens = np.load(Path(folder) / "train.npy", mmap_mode="r")
    model = KneserNey.fit(tokens, int(vocabulary), int(order), document=1, ends=False, backend="numba")
    fitted = time.perf_counter()
    model.save(Path(folder) / "ours")
    found = {"fit": fitted - begin, "save": time.perf_counter() - fitted, "bytes": model.bytes, "sizes": model.sizes}
    print(json.dumps(found))


def run(command: list[str], **options: Any) -> tuple[float, float, str]:
    """Seconds, peak MB of a child, and what it wrote to its error or standard output."""
    code = (
        "import resource,subprocess,sys,json,time;b=time.perf_counter();"
        "i=open(sys.argv[1]) if sys.argv[1] else None;o=open(sys.argv[2],'w') if sys.argv[2] else subprocess.PIPE;"
        "p=subprocess.run(sys.argv[3:],stdin=i,stdout=o,stderr=subprocess.PIPE,text=True);"
        "print(json.dumps([time.perf_counter()-b,resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss/1024,"
        "p.stdout or '',p.stderr,p.returncode]))"
    )
    given = [sys.executable, "-c", code, str(options.get("read", "")), str(options.get("write", "")), *command]
    seconds, memory, out, err, status = json.loads(subprocess.run(given, capture_output=True, text=True, check=True).stdout)
    if status:
        sys.exit(f"{command[0]} failed: {err[-500:]}")
    return seconds, memory, out or err


def measure(arguments: argparse.Namespace, folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Numbers of both."""
    order, rows = str(arguments.order), {}
    worker = [sys.executable, str(HERE), "--build", str(folder), str(facts["vocabulary"]), order]
    first = run([sys.executable, str(HERE), "--build", str(small(folder)), str(facts["vocabulary"]), order])  # compiles
    seconds, memory, out = run(worker)
    rows["ours"] = {"seconds": seconds, "MB": memory, "first run ever, s": first[0], **json.loads(out)}
    rows["lmplz -S"] = {}
    for given in reversed(arguments.memory):
        lmplz = [str(arguments.lmplz / "lmplz"), "-o", order, "-S", given, "-T", str(folder), "--discount_fallback"]
        seconds, memory, _ = run(lmplz, read=folder / "train.txt", write=folder / "kenlm.arpa")
        rows["kenlm"] = {"seconds": seconds, "MB": memory}
        rows["lmplz -S"][given] = rows["kenlm"].copy()
    binary = folder / "kenlm.bin"
    rows["kenlm"]["build_binary, s"], _, _ = run([str(arguments.lmplz / "build_binary"), "probing", str(folder / "kenlm.arpa"), str(binary)])
    rows["kenlm"]["bytes"] = binary.stat().st_size
    scoring(folder, binary, rows)
    return rows


def small(folder: Path) -> Path:
    """A short corpus of the same types, so that compiled loops are in their cache."""
    short = folder / "short"
    short.mkdir(exist_ok=True)
    np.save(short / "train.npy", np.load(folder / "train.npy", mmap_mode="r")[:50_000])
    return short


def scoring(folder: Path, binary: Path, rows: dict[str, Any]) -> None:
    """Scores of sentences and whole distributions, alternating, best of three."""
    import kenlm

    from orrery.ngram.counts import KneserNey

    held = np.load(folder / "held.npy")
    begin = time.perf_counter()
    ours = KneserNey.open(folder / "ours", verify=False)
    rows["ours"]["open, ms"] = 1e3 * (time.perf_counter() - begin)
    theirs = kenlm.Model(str(binary))
    texts = [" ".join(map(str, line)) for line in held.tolist()]
    framed = np.concatenate([np.ones((len(held), 1), np.int64), held, np.full((len(held), 1), 2)], 1)
    starts, flat = np.arange(len(held)) * framed.shape[1], framed.reshape(-1)
    ours.words = ["<unk>", "<s>", "</s>", *map(str, range(3, ours.vocabulary))]
    targets, scores = held.size + len(held), {}
    ways = {
        "kenlm": lambda: np.array([theirs.score(text) for text in texts]),
        "ours, ids": lambda: np.add.reduceat(ours.score(flat, starts, "numba").log_probability, starts) / np.log(10),
        "ours, strings": lambda: ours.score_sentences(texts),
    }
    best = dict.fromkeys(ways, 1e9)
    for _ in range(3):
        for name, way in ways.items():
            begin = time.perf_counter()
            scores[name] = way()
            best[name] = min(best[name], time.perf_counter() - begin)
    perplexity = {name: float(10 ** (-score.sum() / targets)) for name, score in scores.items()}
    rows["scores/s"] = {name: targets / seconds for name, seconds in best.items()}
    rows["perplexity"] = perplexity
    rows["greatest difference of a sentence, log10"] = float(np.abs(scores["kenlm"] - scores["ours, ids"]).max())
    rows["distribution, us"] = distributions(ours, theirs, held)
    if abs(perplexity["kenlm"] / perplexity["ours, ids"] - 1) > 1e-4:
        sys.exit(f"perplexities differ: {perplexity}")


def distributions(ours: Any, theirs: Any, held: np.ndarray) -> dict[str, float]:
    """Microseconds of P(w | context) for every w: median of contexts of ten tokens."""
    import kenlm

    words, taken, wrong = [str(w) for w in range(3, ours.vocabulary)], {"kenlm": [], "ours": []}, 0.0
    ours.distributions(np.array([0]), "numba")
    for line in held[: CONTEXTS // 10]:
        state, after = kenlm.State(), kenlm.State()
        theirs.BeginSentenceWrite(state)
        for token in line[:10].tolist():
            theirs.BaseScore(state, str(token), after)
            state, after = after, state
        begin = time.perf_counter()
        found = [theirs.BaseScore(state, word, after) for word in words]
        taken["kenlm"].append(time.perf_counter() - begin)
        wrong = max(wrong, float(np.abs(np.log10(ours.distribution([1, *line[:10].tolist()])[3:]) - found).max()))
    for line in held[:CONTEXTS]:
        context = [1, *line[:10].tolist()]
        begin = time.perf_counter()
        ours.distribution(context)
        taken["ours"].append(time.perf_counter() - begin)
    nodes = ours.score(held.reshape(-1)[:2000]).context
    begin = time.perf_counter()
    ours.distributions(nodes, "numba", np.float32)
    batch = (time.perf_counter() - begin) / len(nodes)
    result = {name: 1e6 * float(np.median(values)) for name, values in taken.items()}
    return {**result, "ours, batch": 1e6 * batch, "greatest difference, log10": wrong}


def table(rows: dict[str, Any]) -> None:
    """Markdown."""
    ours, theirs, scores, whole = rows["ours"], rows["kenlm"], rows["scores/s"], rows["distribution, us"]
    lines = [
        ("building, s", ours["seconds"], theirs["seconds"], ours["seconds"] / theirs["seconds"]),
        ("peak memory, MB", ours["MB"], theirs["MB"], ours["MB"] / theirs["MB"]),
        ("size, MB", ours["bytes"] / 1e6, theirs["bytes"] / 1e6, ours["bytes"] / theirs["bytes"]),
        ("million scores/s, strings", scores["ours, strings"] / 1e6, scores["kenlm"] / 1e6, scores["ours, strings"] / scores["kenlm"]),
        ("million scores/s, ids in a batch", scores["ours, ids"] / 1e6, scores["kenlm"] / 1e6, scores["ours, ids"] / scores["kenlm"]),
        ("next-token distribution, us", whole["ours"], whole["kenlm"], whole["ours"] / whole["kenlm"]),
        ("the same in a batch, us", whole["ours, batch"], whole["kenlm"], whole["ours, batch"] / whole["kenlm"]),
        ("held-out perplexity", rows["perplexity"]["ours, ids"], rows["perplexity"]["kenlm"], 0.0),
    ]
    print(f"\n{rows['tokens']:,} tokens of {rows['corpus']}, {rows['tokenizer']}\n\n| | Orrery | KenLM | ratio |\n|---|---|---|---|")
    for given, found in rows["lmplz -S"].items():
        lines.append((f"building, s, beside lmplz -S {given}", ours["seconds"], found["seconds"], ours["seconds"] / found["seconds"]))
        lines.append((f"peak memory, MB, beside lmplz -S {given}", ours["MB"], found["MB"], ours["MB"] / found["MB"]))
    for name, a, b, ratio in lines:
        print(f"| {name} | {a:,.6g} | {b:,.6g} | {f'{ratio:.2f}' if ratio else ''} |")
    print(f"\npeak of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--build"]:
        build(*sys.argv[2:5])
    else:
        main()
