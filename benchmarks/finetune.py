"""A fine-tuning step beside the step of transformers' Trainer: same weights, same batches of mixed lengths, one run.

    python benchmarks/finetune.py [bert] [modernbert] [t5] [--rounds N] [--threads N]

Width 256, 4 layers (T5: 4 and 4), 4 heads, hidden size 1024, vocabulary 30522: a BERT of 11 million parameters. Batches of 32
examples, lengths log-normal as those of sentences (21 tokens on average, at most 128), in no order; T5's answers are as long as
their sources, give or take a fifth. No dropout on either side; weight decay 0.01.

A step is: collate, forward, loss, backward, clip at 1.0, fused AdamW. Ours is that of `orrery finetune` (its collation, objective,
engine). Theirs does what Trainer.training_step and its loop do (padding collator, model with labels, clip_grad_norm_,
torch's fused AdamW, linear schedule) without the rest of the Trainer. Rounds are interleaved on the same batches; the ratio is
the median of the rounds'. Before that both losses on the first batch are compared. Memory: the peak of a fresh process
over a pass through the batches above what it held with the model alone.

Medians of one run on two cores of a shared machine (the tenth and ninetieth percentile of the rounds' ratios):

                 ours  transformers                        ours  transformers
    bert       101 ms        195 ms   1.81x [1.45, 3.81]   183 MB       532 MB   0.34x
    modernbert 124 ms        270 ms   1.96x [1.71, 4.21]   215 MB       697 MB   0.31x
    t5         490 ms      1,035 ms   2.13x [1.50, 4.14]   504 MB     3,143 MB   0.16x
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from speed import forget_peak, mark, seconds_of, status_bytes

import orrery
from orrery.core.environment import cpu_name
from orrery.core.memory import keep_large_blocks
from orrery.data.examples import Examples, TaskSpec
from orrery.data.labelled import collate
from orrery.objectives import create_objective
from orrery.optim.adamw import AdamW, AdamWConfig
from orrery.train.engine import Engine, Pair

WIDTH, DEPTH, HEADS, HIDDEN, V, CLASSES = 256, 4, 4, 1024, 30522, 3
BATCH, BATCHES, LONGEST, RATE, DECAY = 32, 8, 128, 1e-5, 0.01
FASTER, SMALLER = 1.3, 0.8
Step = Callable[[int], float]


def examples(name: str) -> Examples:
    """The examples of all batches."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(17.0), 0.65, BATCH * BATCHES).round().astype(int), 4, LONGEST)
    ids = [rng.integers(5, V, length) for length in lengths]
    if name != "t5":
        return Examples(TaskSpec(), [], ids, targets=rng.integers(0, CLASSES, len(ids)).tolist())
    answers = np.clip((lengths * rng.normal(1.0, 0.2, len(ids))).round().astype(int), 3, LONGEST)
    return Examples(TaskSpec(kind="text-to-text"), [], ids, targets=[np.append(rng.integers(5, V, n), 1) for n in answers])


def their_model(name: str) -> Any:
    """The model as transformers makes it."""
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": HIDDEN}
    if name == "bert":
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return transformers.BertForSequenceClassification(
            transformers.BertConfig(vocab_size=V, num_labels=CLASSES, **sizes, **off)
        )
    if name == "modernbert":
        marks = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
        return transformers.ModernBertForSequenceClassification(
            transformers.ModernBertConfig(vocab_size=V, num_labels=CLASSES, **sizes, **marks)
        )
    config = transformers.T5Config(
        vocab_size=V, d_model=WIDTH, d_kv=WIDTH // HEADS, num_heads=HEADS, num_layers=DEPTH, d_ff=HIDDEN, dropout_rate=0.0,
        decoder_start_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def their_step(name: str, model: Any, data: Examples) -> Step:
    """What the Trainer does with batch `number`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import (
        DataCollatorForSeq2Seq,
        DataCollatorWithPadding,
        PreTrainedTokenizerFast,
        get_linear_schedule_with_warmup,
    )

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1}, "[UNK]")), pad_token="[PAD]")
    pad = DataCollatorForSeq2Seq(words, model) if name == "t5" else DataCollatorWithPadding(words)
    assert data.targets is not None
    rows = [
        {"input_ids": ids.tolist(), "attention_mask": [1] * len(ids), "labels": target.tolist() if name == "t5" else target}
        for ids, target in zip(data.ids, data.targets, strict=True)
    ]
    plain = [p for key, p in model.named_parameters() if key.endswith("bias") or "norm" in key.lower()]
    others = [p for p in model.parameters() if not any(p is one for one in plain)]
    groups = [{"params": others, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, 10000)
    model.train()

    def step(number: int) -> float:
        batch = pad([dict(row) for row in rows[BATCH * number : BATCH * (number + 1)]])
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        model.zero_grad()
        return float(loss.detach())

    return step


def own_step(name: str, model: Any, data: Examples) -> Step:
    """What `orrery finetune` does with batch `number`."""
    pair = Pair(model, create_objective("text-to-text" if name == "t5" else "labelled"))
    engine = Engine(pair, AdamW(pair, RATE, AdamWConfig(weight_decay=DECAY)), lambda number: RATE)
    pair.train()
    return lambda number: engine.step(0, collate(data, np.arange(BATCH * number, BATCH * (number + 1)))).loss


def steps_of(name: str, sides: tuple[str, ...]) -> list[Step]:
    """The steps of these sides, from the same weights."""
    theirs, data = their_model(name), examples(name)
    own = orrery.from_transformers(theirs) if "own" in sides else None
    return [own_step(name, own, data) if side == "own" else their_step(name, theirs, data) for side in sides]


def speed(name: str, rounds: int) -> list[tuple[float, float]]:
    """Seconds of our step and of theirs, round by round."""
    own, theirs = steps_of(name, ("own", "theirs"))
    first = own(0), theirs(0)
    assert abs(first[0] - first[1]) < 1e-4, f"{name}: the losses {first} of the same weights differ"
    for number in range(1, 3):
        own(number), theirs(number)
    found = []
    for turn in range(rounds):
        pair = [(side, seconds_of(lambda step=step, number=turn % BATCHES: step(number))) for side, step in
                sorted({"own": own, "theirs": theirs}.items(), reverse=bool(turn % 2))]  # fmt: skip
        times = dict(pair)
        found.append((times["own"], times["theirs"]))
    return found


def memory(name: str, side: str) -> float:
    """Peak bytes above those held before the first step; run in a process of its own."""
    (step,) = steps_of(name, (side,))
    a = torch.randn(512, 512)
    (a @ a).sum()
    before = forget_peak()
    for number in range(BATCHES):
        step(number)
    return status_bytes("VmHWM") - before


def memory_of(name: str, side: str, threads: int) -> float:
    """`memory` in a fresh process."""
    command = [sys.executable, __file__, name, "--memory", side, "--threads", str(threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["bert", "modernbert", "t5"])
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", choices=("own", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_large_blocks()
    if options.memory:
        print(memory(options.names[0], options.memory))
        return 0
    data = examples("bert")
    padded = sum(BATCH * int(data.lengths[i : i + BATCH].max()) for i in range(0, len(data), BATCH))
    print(f"{cpu_name()}, {options.threads} threads, torch {torch.__version__}")
    print(f"batches of {BATCH}, {data.lengths.mean():.1f} tokens on average, {1 - data.lengths.sum() / padded:.0%} of a padded batch is padding")
    for name in options.names:
        found = speed(name, options.rounds)
        own, theirs = (statistics.median(times) * 1e3 for times in zip(*found, strict=True))
        ratios = sorted(b / a for a, b in found)
        bytes_ = [memory_of(name, side, options.threads) for side in ("own", "theirs")]
        print(
            f"{name:11} step {own:6.1f} ms, transformers {theirs:6.1f} ms: {mark(statistics.median(ratios), FASTER)}"
            f" [{ratios[len(ratios) // 10]:.2f}, {ratios[-1 - len(ratios) // 10]:.2f}];"
            f" memory {bytes_[0] / 1e6:.0f} and {bytes_[1] / 1e6:.0f} MB: {mark(bytes_[0] / bytes_[1], SMALLER, least=False)}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
