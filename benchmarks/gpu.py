"""On a GPU, beside fla's own models: `python benchmarks/gpu.py [gla gated-deltanet ...] [--batch 8] [--length 2048] [--json]`

Needs a CUDA device, fla-core (extra `gpu`) and, as the peer, the whole package `flash-linear-attention`. For every pair at 340M parameters:

1. Correct: our operation's backend `fla` on the GPU against the CPU, a two-layer model of the same kind in float32 with the same
   weights: largest error of the logits and of all gradients, relative to the largest number. Above --limit it is an error.
2. Speed: a training step (forward, loss, backward, fused AdamW) and reading without gradients, in bfloat16 autocast, in
   turn with fla's model of the same config in the same process; medians of --rounds, the ratio is that of each round. At least
   1.0 is asked for. Peak memory of the step stands beside it.

Both sides are timed with CUDA events after three warm-up steps each, which also tune the kernels.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import orrery
from orrery.objectives import create_objective
from orrery.ops.backend import current_backend, forget_backends

WIDTH, DEPTH, HIDDEN, VOCABULARY = 1024, 24, 2816, 32000


@dataclass(frozen=True)
class Pair:
    """One architecture: our name and settings; fla's config class (in fla.models), model class and settings."""

    name: str
    config: str
    model: str
    own: dict[str, Any] = field(default_factory=dict)
    theirs: dict[str, Any] = field(default_factory=dict)


PAIRS = (
    Pair("gla", "GLAConfig", "GLAForCausalLM", {"heads": 4, "head_dim": 256}, {"num_heads": 4}),
    Pair("deltanet", "DeltaNetConfig", "DeltaNetForCausalLM", {"head_dim": 128}, {"num_heads": 8}),
    Pair(
        "gated-deltanet",
        "GatedDeltaNetConfig",
        "GatedDeltaNetForCausalLM",
        {"heads": 6, "head_dim": 128},
        {"num_heads": 6, "head_dim": 128, "expand_v": 2},
    ),
    Pair("hgrn2", "HGRN2Config", "HGRN2ForCausalLM", {"head_dim": 128}, {"expand_ratio": 128}),
    Pair("kda", "KDAConfig", "KDAForCausalLM", {"head_dim": 128}, {"num_heads": 8, "head_dim": 128}),
    Pair("retnet", "RetNetConfig", "RetNetForCausalLM", {}, {"num_heads": 4}),
    Pair("rwkv6", "RWKV6Config", "RWKV6ForCausalLM", {}, {"num_heads": 4}),
    Pair("rwkv7", "RWKV7Config", "RWKV7ForCausalLM", {}, {"head_dim": 64}),
)


def own_model(pair: Pair, depth: int, vocabulary: int) -> Any:
    """Our side."""
    settings = {"channel.hidden": HIDDEN, **pair.own}
    known = orrery.create_model(pair.name, width=WIDTH, depth=1, vocab_size=8).config.blocks[0]
    settings = {
        key: value
        for key, value in settings.items()
        if key != "channel.hidden" or (known.channel or {}).get("name") == "glu"
    }
    return orrery.create_model(pair.name, width=WIDTH, depth=depth, vocab_size=vocabulary, seed=0, **settings)


def their_model(pair: Pair) -> Any:
    """fla's side."""
    models = importlib.import_module("fla.models")
    settings = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "vocab_size": VOCABULARY, "tie_word_embeddings": True}
    if pair.name not in ("rwkv6", "rwkv7"):
        settings["intermediate_size"] = HIDDEN
    return getattr(models, pair.model)(getattr(models, pair.config)(**settings, **pair.theirs))


def gradients(model: Any, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Logits and the gradients of the loss, on the CPU in float64."""
    model.zero_grad(set_to_none=True)
    loss, _ = create_objective("next-token")(model, {"tokens": tokens})
    loss.backward()
    found = [model(tokens[:, :-1]).logits, *(p.grad for p in model.parameters() if p.grad is not None)]
    return [x.detach().double().cpu() for x in found]


def correct(pair: Pair, length: int) -> dict[str, Any]:
    """Largest relative error of logits and gradients, GPU against CPU, and the backends that ran there."""
    model = own_model(pair, 2, 512).train()
    tokens = torch.randint(1, 512, (2, length + 1), generator=torch.Generator().manual_seed(0))
    wanted = gradients(model, tokens)
    forget_backends()
    found = gradients(model.cuda(), tokens.cuda())
    errors = [((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item() for a, b in zip(found, wanted, strict=True)]
    return {"logits": errors[0], "gradients": max(errors[1:]), "backends": current_backend()}


def trainer(model: nn.Module, loss: Callable[[torch.Tensor], torch.Tensor], tokens: torch.Tensor) -> Callable[[], None]:
    """One optimizer step under autocast."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            value = loss(tokens)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def reader(model: nn.Module, tokens: torch.Tensor) -> Callable[[], None]:
    """All logits, without gradients."""

    def read() -> None:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            _ = model(tokens[:, :-1]).logits

    return read


def seconds(work: Callable[[], None]) -> float:
    """Of one call, by CUDA events."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def timed(ours: Callable[[], None], theirs: Callable[[], None], rounds: int, count: int) -> dict[str, float]:
    """Tokens per second of both, and the median of the rounds' ratios."""
    for work in (ours, theirs):
        for _ in range(3):
            work()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    own, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {"ours": count / own, "theirs": count / other, "ratio": statistics.median(b / a for a, b in pairs)}


def peak(work: Callable[[], None]) -> float:
    """Bytes at most while it runs."""
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated())


def speed(pair: Pair, batch: int, length: int, rounds: int) -> dict[str, Any]:
    """Both sides of one pair."""
    own, other = own_model(pair, DEPTH, VOCABULARY).cuda().train(), their_model(pair).cuda().train()
    tokens = torch.randint(1, VOCABULARY, (batch, length + 1), device="cuda")
    objective = create_objective("next-token")
    steps = (
        trainer(own, lambda t: objective(own, {"tokens": t})[0], tokens),
        trainer(other, lambda t: other(input_ids=t[:, :-1], labels=t[:, :-1]).loss, tokens),
    )
    count = batch * length
    found: dict[str, Any] = {"millions": [sum(p.numel() for p in model.parameters()) / 1e6 for model in (own, other)]}
    found["train"] = timed(*steps, rounds, count)
    found["memory"] = [peak(step) for step in steps]
    found["read"] = timed(reader(own.eval(), tokens), reader(other.eval(), tokens), rounds, count)
    return found


def obstacle() -> str | None:
    """Why nothing can be measured here."""
    if not torch.cuda.is_available():
        return "no CUDA device is visible to torch, and these kernels run nowhere else"
    missing = [name for name in ("fla", "triton") if importlib.util.find_spec(name) is None]
    return f"the packages {' and '.join(missing)} are missing; install the extra `gpu`" if missing else None


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(pair.name for pair in PAIRS)}; all when none is given")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--limit", type=float, default=2e-2, help="largest relative error against the CPU (tensor-float-32)"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    unknown = set(options.names) - {pair.name for pair in PAIRS}
    reason = f"there is no pair called {', '.join(sorted(unknown))}" if unknown else obstacle()
    if reason:
        print(f"benchmarks/gpu.py measured nothing: {reason}.", file=sys.stderr)
        sys.exit(2)
    peers, wrong = importlib.util.find_spec("fla.models") is not None, []
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, batch {options.batch} x {options.length}, bfloat16",
        file=sys.stderr,
    )
    if not peers:
        print("fla.models is missing (package flash-linear-attention): correctness only.", file=sys.stderr)
    for pair in PAIRS:
        if options.names and pair.name not in options.names:
            continue
        found: dict[str, Any] = {"name": pair.name, "correct": correct(pair, 300)}
        checked = found["correct"]
        if max(checked["logits"], checked["gradients"]) > options.limit:
            wrong.append(pair.name)
        if peers:
            found.update(speed(pair, options.batch, options.length, options.rounds))
        if options.json:
            print(json.dumps(found), flush=True)
            continue
        print(
            f"{pair.name}: logits {checked['logits']:.1e}, gradients {checked['gradients']:.1e} off the CPU's; {checked['backends']}"
        )
        for what in ("train", "read") if peers else ():
            row = found[what]
            print(
                f"  {what}: {row['ours']:,.0f} tokens/s beside {row['theirs']:,.0f}, ratio {row['ratio']:.2f} (1.0 asked)",
                flush=True,
            )
    if wrong:
        print(f"Differs from the CPU by more than {options.limit}: {', '.join(wrong)}.", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
