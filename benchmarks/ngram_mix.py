"""Perplexity of a small neural model, of the ∞-gram and of their mix; agreement of human and of machine text.

    python benchmarks/ngram_mix.py stdlib --tokenizer bpe:2048 --budget 2Mtok
    python benchmarks/ngram_mix.py PATH/TO/wikitext2/valid.txt --tokenizer bpe:2048 --budget 2Mtok

The neural model is trained on the training split as `orrery train` trains, the index and the Kneser-Ney model are made of
all of that split, and everything is scored on the same windows of the validation split (whole documents or their parts of
64 KiB, windows of --length tokens that start without memory; the ∞-gram sees no more). Weights of a mix are fitted on one
half of the held-out documents and used on the other, both ways. Machine text is drawn from the neural model, as many tokens
as there are human ones or --machine.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import orrery
from orrery import ngram
from orrery.data import prepare, validation_windows
from orrery.evaluate.language import bits_per_byte
from orrery.ngram.mixing import evaluate_mix
from orrery.ngram.uses import agreement, contamination, novelty


def main() -> None:
    """Print tables in markdown and, with --json, write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus")
    parser.add_argument("--tokenizer", default="bpe:2048")
    parser.add_argument("--model", default="transformer")
    parser.add_argument("--size", default="nano")
    parser.add_argument("--budget", default="2Mtok")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--bytes", type=int, default=128 << 10, help="of held-out text")
    parser.add_argument("--machine", type=int, default=4000, help="tokens of machine text")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = experiment(arguments, Path(folder))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


def experiment(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything, printed as it comes."""
    data = prepare(arguments.corpus, arguments.tokenizer, quiet=True)
    windows = validation_windows(data.validation, arguments.length, 8, arguments.bytes)
    stream = np.asarray(data.train.read(0, len(data.train)))
    neural, trained = train(arguments, folder, data)
    begin = time.perf_counter()
    index = ngram.build(data.train, folder / "index", tokenizer=data.tokenizer, quiet=True)
    built = time.perf_counter() - begin
    kneser = orrery.create_model("kneser-ney", vocab_size=data.tokenizer.vocab_size).fit(stream, document=data.tokenizer.doc_id)
    infinite = orrery.create_model("infinigram", vocab_size=data.tokenizer.vocab_size).fit(stream, document=data.tokenizer.doc_id)
    mixes = {"neural": evaluate_mix(neural, index, windows), "Kneser-Ney 5-gram": evaluate_mix(kneser, index, windows)}
    alone = bits_per_byte(infinite, windows)
    one = mixes["neural"]
    print(f"\n{Path(arguments.corpus).name}, {data.tokenizer.name}: trained and counted on {len(stream):,} tokens, "
          f"scored on {one.tokens:,} tokens ({one.bytes:,} bytes, {one.documents} documents)")  # fmt: skip
    print(f"neural: {arguments.model} {arguments.size}, {arguments.budget}, {trained:.0f} s; index built in {built:.1f} s\n")
    print("| model | perplexity per token | bits per byte |\n|---|---|---|")
    for name, mix in mixes.items():
        print(f"| {name} | {mix.perplexity['model']:.2f} | {mix.bits_per_byte['model']:.3f} |")
    print(f"| ∞-gram over Kneser-Ney (`infinigram`) | {math.exp(alone['nats_per_token']):.2f} | {alone['bits_per_byte']:.3f} |")
    for name, mix in mixes.items():
        print(f"| ∞-gram mixed with {name} | {mix.perplexity['mix']:.2f} | {mix.bits_per_byte['mix']:.3f} |")
    print(f"\n∞-gram alone: {100 * one.zero:.1f} % of the tokens have probability 0, {100 * one.agreement:.1f} % more than half; "
          f"{100 * one.sparse:.1f} % of the contexts are sparse, mean effective n {one.mean_n:.2f}\n")  # fmt: skip
    weights(one.mixture)
    texts = generated(neural, data, arguments.machine)
    human = [row[: len(texts[0])] for row in human_rows(data, len(texts[0]), len(texts))]
    both = {"human": agreement(index, human), "machine": agreement(index, texts)}
    rows(both)
    new = {"human": novelty(index, human), "machine": novelty(index, texts)}
    print("\n| n | " + " | ".join(map(str, new["human"].new)) + " |\n|---|" + "---|" * len(new["human"].new))
    for name, one_new in new.items():
        print(f"| new n-grams, {name} | " + " | ".join(f"{100 * share:.0f} %" for share in one_new.new.values()) + " |")
    dirty = contamination(index, data.validation).to_dict()
    print(f"\nheld-out documents with at least 70 % of their 8-grams in the training split, or a span of 50 tokens: "
          f"{len(dirty['contaminated'])} of {dirty['total']} ({100 * dirty['token_rate']:.1f} % of the tokens lie in such an 8-gram)")  # fmt: skip
    return {
        "corpus": Path(arguments.corpus).name, "mixes": {name: mix.to_dict() for name, mix in mixes.items()},
        "infinigram": {key: alone[key] for key in ("bits_per_byte", "nats_per_token")},
        "agreement": {name: one.to_dict() for name, one in both.items()},
        "novelty": {name: one.to_dict() for name, one in new.items()}, "contamination": dirty,
    }  # fmt: skip


def train(arguments: argparse.Namespace, folder: Path, data: Any) -> tuple[Any, float]:
    """The neural model and the seconds that it took."""
    begin = time.perf_counter()
    config = {
        "model": {"name": arguments.model, "size": arguments.size},
        "data": {"corpus": arguments.corpus, "tokenizer": arguments.tokenizer, "length": arguments.length, "batch": 8},
        "optim": {"lr": arguments.lr},
        "budget": arguments.budget,
    }
    orrery.train(config, folder / "run", data=data, quiet=True)
    return orrery.load(folder / "run" / "weights").eval(), time.perf_counter() - begin


def generated(model: Any, data: Any, tokens: int) -> list[np.ndarray]:
    """Text of the model at temperature 1, in rows of 500 tokens that begin as documents do."""
    rows = max(1, tokens // 500)
    start = torch.full((rows, 1), data.tokenizer.doc_id)
    drawn = orrery.generate(model, start, min(500, tokens), seed=0)[:, 1:].numpy()
    return [row[row != data.tokenizer.doc_id] for row in drawn]


def human_rows(data: Any, length: int, count: int) -> list[np.ndarray]:
    """Held-out text in rows of one length."""
    stream = np.asarray(data.validation.read(0, len(data.validation))).astype(np.int64)
    stream = stream[stream != data.tokenizer.doc_id]
    step = max(length, len(stream) // count)
    return [stream[start : start + length] for start in range(0, len(stream) - length + 1, step)][:count]


def weights(mixture: Any) -> None:
    """The weights of the ∞-gram by bucket."""
    ends = zip(mixture.edges, mixture.edges[1:], strict=False)
    names = ["0", *(str(a) if b == a + 1 else f"{a}-{b - 1}" for a, b in ends), f"{mixture.edges[-1]}+"]
    print("| effective n | " + " | ".join(names) + " |\n|---|" + "---|" * len(names))
    labels = ("weight, other contexts", "weight, sparse contexts")
    for label, row, tokens in zip(labels, mixture.weights, mixture.tokens, strict=True):
        print(f"| {label} | " + " | ".join(f"{w:.2f}" if t else "" for w, t in zip(row, tokens, strict=True)) + " |")


def rows(both: dict[str, Any]) -> None:
    """Agreement by effective n, beside each other."""
    print("\n| effective n | " + " | ".join(f"{name}: tokens | agreement | sparse | agreement if sparse" for name in both) + " |")
    print("|---|" + "---|---|---|---|" * len(both))
    lows = sorted({row.low for one in both.values() for row in one.rows})
    for low in [*lows, None]:
        cells = []
        for one in both.values():
            row = one if low is None else next((r for r in one.rows if r.low == low), None)
            if row is None:
                cells.append(" | | | ")
                continue
            among = "" if row.sparse_agreement is None else f"{100 * row.sparse_agreement:.0f} %"
            cells.append(f"{row.tokens:,} | {100 * row.agreement:.0f} % | {100 * row.sparse:.0f} % | {among}")
        print(f"| {'all' if low is None else f'{low}+'} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
