"""Encoding sentences of mixed length beside transformers and sentence-transformers: same weights, same tokenizer, one run.

    python benchmarks/encode.py [THREADS] [SENTENCES]

A BERT of 11 million parameters (width 256, 4 layers, vocabulary 30522), random weights; sentences cut from the docstrings of
the standard library, lengths log-normal (21 tokens on average). All three turn texts into vectors (mean of the last hidden
states): tokenizing counts. sentence-transformers sorts by length itself; transformers is given batches of 32 in the order of
the texts, and, as a third column, sorted by length. Repetitions are interleaved; the ratio is the median of the pairs'.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import orrery
from orrery.data.stdlib import docstrings, standard_library
from orrery.models.encode import encode

VOCAB = 8000


def sentences(count: int) -> list[str]:
    """Pieces of docstrings, log-normal in words, the same every time."""
    files = sorted(standard_library().glob("*.py"))[:80]
    words = " ".join(docstrings(file.read_text(encoding="utf-8")) for file in files).split()
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(np.log(9.5), 0.7, count).astype(int), 2, 80)
    starts = rng.integers(0, len(words) - 100, count)
    return [" ".join(words[start : start + size]) for start, size in zip(starts, sizes, strict=True)]


def tokenizer(texts: list[str], folder: Path) -> Any:
    """A WordPiece tokenizer of these texts, as transformers reads it."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertTokenizerFast

    own = BertWordPieceTokenizer(lowercase=True)
    own.train_from_iterator(texts, vocab_size=VOCAB, show_progress=False)
    own.save(str(folder / "tokenizer.json"))
    return BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


def ways(texts: list[str], folder: Path) -> dict[str, Callable[[list[str]], Any]]:
    """The four ways from texts to vectors (N,256)."""
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers import models as parts
    from tokenizers import Tokenizer

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    config = transformers.BertConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)
    hf = transformers.BertModel(config).eval()
    words = tokenizer(texts, folder)
    hf.save_pretrained(folder)
    words.save_pretrained(folder)
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))  # transformers pads in its own
    plain.no_padding()
    body = parts.Transformer(str(folder))
    sbert = SentenceTransformer(modules=[body, parts.Pooling(256, pooling_mode="mean")], device="cpu")
    own: Any = orrery.from_transformers(hf)
    own.head = None
    own.eval()

    def with_hf(given: list[str], ordered: bool = False) -> torch.Tensor:
        order = sorted(range(len(given)), key=lambda i: -len(given[i])) if ordered else list(range(len(given)))
        found = []
        with torch.inference_mode():
            for start in range(0, len(order), 32):
                batch = words([given[i] for i in order[start : start + 32]], padding=True, return_tensors="pt")
                mask = batch["attention_mask"][..., None]
                found.append((hf(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
        return torch.cat(found)[torch.tensor(order).argsort()]

    def with_ours(given: list[str]) -> torch.Tensor:
        found = [plain.encode(given[0])] if len(given) == 1 else plain.encode_batch(given)
        return encode(own, [each.ids for each in found])

    return {
        "orrery": with_ours,
        "sentence-transformers": lambda given: sbert.encode(given, batch_size=32, convert_to_tensor=True, show_progress_bar=False),
        "transformers": with_hf,
        "transformers, sorted": lambda given: with_hf(given, True),
    }


def main() -> int:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    texts = sentences(int(sys.argv[2]) if len(sys.argv) > 2 else 512)
    with tempfile.TemporaryDirectory() as folder:
        found = ways(texts, Path(folder))
        expected = found["transformers"](texts)
        for name, way in found.items():
            worst = float((way(texts) - expected).abs().max())
            assert worst < 1e-4, f"{name} differs from transformers by {worst}"
        print(f"{torch.get_num_threads()} threads, {len(texts)} sentences, torch {torch.__version__}")
        for title, inputs, repeats in (("sentences/s", texts, 7), ("ms, one sentence", texts[:1], 161)):
            times: dict[str, list[float]] = {name: [] for name in found}
            for _ in range(repeats + 1):
                for name, way in found.items():
                    begin = time.perf_counter()
                    way(inputs)
                    times[name].append(time.perf_counter() - begin)
            for name, spent in times.items():
                ratio = statistics.median(b / a for a, b in zip(times["orrery"][1:], spent[1:], strict=True))
                middle = statistics.median(spent[1:])
                value = len(inputs) / middle if len(inputs) > 1 else middle * 1e3
                print(f"{title:18} {name:24} {value:9.2f}   takes {ratio:.2f} times as long as orrery")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
