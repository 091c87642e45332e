"""Is the memory of training linear? `python benchmarks/memory.py mamba2 rwkv7 transformer [--longest 8192]`

Peak memory of three training steps above what the process held before the first (forward, loss, backward, fused AdamW), batch 1,
width 256, 6 layers, 512 ids, in a fresh process for every architecture and length. The last column is the slope there: bytes
that one more token costs a layer, between a length and the next; its share of `transformer`'s slope at the same place stands
behind it when that is among the names. Our attention never holds its scores, so its own memory is linear in the length, too.

`--saved` counts instead, without timing or noise: the bytes that one forward pass keeps for the backward pass (parameters apart,
each storage once), per token and layer, at --longest/2 and between there and --longest, and the operations that keep most of
them. Beside it two readings of attention: ours (fused), and one that holds its scores, as the textbook writes it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import torch
from speed import forget_peak, own_loss, status_bytes, trainer

import orrery
from orrery.core.environment import cpu_name
from orrery.core.memory import keep_large_blocks

SCORES = "attention that holds its scores"
WIDTH, DEPTH, VOCABULARY, STEPS = 256, 6, 512, 3


def peak(name: str, length: int) -> float:
    """Bytes; run in a process of its own."""
    keep_large_blocks()
    model = orrery.create_model(name, width=WIDTH, depth=DEPTH, vocab_size=VOCABULARY, seed=0)
    tokens = torch.randint(0, VOCABULARY, (1, length + 1), generator=torch.Generator().manual_seed(0))
    short = trainer(model, lambda model, _: own_loss(model, tokens[:, :65]))
    short()  # compiles loops, makes gradients and the optimizer's moments
    step = trainer(model, lambda model, _: own_loss(model, tokens))
    before = forget_peak()
    for _ in range(STEPS):
        step()
    return status_bytes("VmHWM") - before


def measured(name: str, length: int, threads: int) -> float:
    """`peak` in a fresh process."""
    command = [sys.executable, __file__, name, "--one", str(length), "--threads", str(threads)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def slopes(lengths: list[int], bytes_: list[float]) -> list[float]:
    """Bytes per token and layer between a length and the next."""
    pairs = zip(zip(lengths, bytes_, strict=True), zip(lengths[1:], bytes_[1:], strict=False), strict=False)
    return [(b1 - b0) / (t1 - t0) / DEPTH for (t0, b0), (t1, b1) in pairs]


def held_scores(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):  # type: ignore[no-untyped-def]
    """Attention that holds its scores (B,H,T,T); in the place of torch's."""
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = (
        scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf) if is_causal else scores
    )
    return torch.softmax(scores if attn_mask is None else scores + attn_mask, -1) @ v


def saved(name: str, length: int) -> tuple[float, dict[str, float]]:
    """Bytes that the blocks' forward pass keeps for the backward pass; and the same by the function that asks for them."""
    attention = torch.nn.functional.scaled_dot_product_attention
    own = "transformer" if name == SCORES else name
    model = orrery.create_model(own, width=WIDTH, depth=DEPTH, vocab_size=VOCABULARY, seed=0).train()
    fixed = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    tokens = torch.randint(0, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(0))
    held: dict[int, torch.UntypedStorage] = {}
    found: dict[str, float] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in fixed and storage.data_ptr() not in held:
            held[storage.data_ptr()] = storage  # kept alive, so that no address is given out twice
            frame = sys._getframe(1)
            while "orrery" not in frame.f_code.co_filename or "/nn/contract" in frame.f_code.co_filename:
                frame = frame.f_back
            place = f"{frame.f_code.co_filename.rpartition('/')[2][:-3]}.{frame.f_code.co_name}"
            found[place] = found.get(place, 0.0) + storage.nbytes()
        return x

    torch.nn.functional.scaled_dot_product_attention = held_scores if name == SCORES else attention
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            hidden = model(tokens).hidden
    finally:
        torch.nn.functional.scaled_dot_product_attention = attention
    assert hidden.requires_grad
    return float(sum(storage.nbytes() for storage in held.values())), found


def saved_table(names: list[str], longest: int) -> None:
    """A Markdown table of what is kept per token and layer, beside both readings of attention."""
    short, references = longest // 2, {}
    print(
        f"| width {WIDTH}, {DEPTH} layers | numbers a token and layer, {short:,} | rise to {longest:,} | of fused | of held scores | most of it |"
    )
    print("|---|---|---|---|---|---|")
    for name in ["transformer", SCORES, *(name for name in names if name != "transformer")]:
        (few, where), (many, _) = saved(name, short), saved(name, longest)
        per = [few / short / DEPTH / 4, (many - few) / (longest - short) / DEPTH / 4]
        references.setdefault(name, per[1]) if name in ("transformer", SCORES) else None
        shares = [
            f"{per[1] / references[other]:.2f}" if other in references else "" for other in ("transformer", SCORES)
        ]
        most = sorted(where.items(), key=lambda item: -item[1])[:4]
        text = ", ".join(f"{place} {size / short / DEPTH / 4:,.0f}" for place, size in most)
        print(f"| {name} | {per[0]:,.0f} | {per[1]:,.0f} | {shares[0]} | {shares[1]} | {text} |", flush=True)


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="architectures")
    parser.add_argument("--longest", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--saved", action="store_true", help="count what is kept for the backward pass")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        print(peak(options.names[0], options.one))
        return
    if options.saved:
        saved_table(options.names, options.longest)
        return
    lengths = [1024]
    while lengths[-1] < options.longest:
        lengths.append(2 * lengths[-1])
    if not options.json:
        print(
            f"{cpu_name()}, {options.threads} threads, torch {torch.__version__}; width {WIDTH}, {DEPTH} layers, batch 1"
        )
    reference: list[float] = []
    for name in sorted(options.names, key=lambda name: name != "transformer"):
        found = [measured(name, length, options.threads) for length in lengths]
        rising = slopes(lengths, found)
        reference = rising if name == "transformer" else reference
        shares = [one / other for one, other in zip(rising, reference, strict=False)]
        if options.json:
            print(
                json.dumps({"name": name, "lengths": lengths, "bytes": found, "slopes": rising, "shares": shares}),
                flush=True,
            )
            continue
        print(f"{name}: " + ", ".join(f"{t:,} tokens {b / 1e6:,.0f} MB" for t, b in zip(lengths, found, strict=True)))
        steps = (f"{a:,} to {b:,} {s:,.0f} B" for a, b, s in zip(lengths, lengths[1:], rising, strict=False))
        against = "; of transformer's: " + ", ".join(f"{share:.2f}" for share in shares) if shares else ""
        print("  per token and layer: " + ", ".join(steps) + against, flush=True)


if __name__ == "__main__":
    main()
