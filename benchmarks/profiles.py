"""Where the time of a row of RESULTS.md goes: `python benchmarks/speed.py --profile NAME` prints it and writes nothing.

Training step and prefill: time of every operation without the ones it calls (torch.profiler), put into groups; matrix
products with the rate they reach, beside the rate of one large product on the same machine. Decoding: reading the prompt,
preparing the step, the tokens; beside what memory allows if every weight that a token uses were read once, at the rate at
which a product of a matrix of 64 MB with a vector reads it. Fastest of several runs, ours only.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as record

from orrery.models.stepper import AHEAD
from orrery.nn.contract import Context

MIXED = "other"
GROUPS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_addmm_activation", "aten::mv", "aten::addmv"),
    "softmax attention (torch's flash kernels)": (
        "aten::_scaled_dot_product_flash_attention_for_cpu", "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
        "aten::_scaled_dot_product_attention_math", "aten::scaled_dot_product_attention",
    ),
    "optimizer": ("aten::_fused_adamw_",),
    "copies and new memory": ("aten::copy_", "aten::cat", "aten::zero_", "aten::fill_", "aten::empty", "aten::empty_strided", "aten::clone"),
}  # fmt: skip


def group_of(name: str) -> str:
    """The line of the table that an operation belongs to."""
    for group, names in GROUPS.items():
        if name in names:
            return group
    if name.startswith("autograd::") or name.endswith("AccumulateGrad") or "Optimizer" in name:
        return "autograd's own work"
    return name.removesuffix("Backward") if name.startswith("_") else MIXED


def fastest(work: Callable[[], Any], times: int) -> float:
    """Seconds of the fastest call after one to warm up."""
    work()
    found = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


def read_rate() -> float:
    """Bytes a second that a product of a matrix with a vector reads."""
    a, x = torch.randn(65536, 256), torch.randn(256)
    return a.numel() * 4 / fastest(lambda: torch.mv(a, x), 40)


def groups(work: Callable[[], Any], times: int = 2) -> tuple[Counter[str], float]:
    """Seconds of one call by group, and the floating-point operations of its matrix products."""
    work()
    with record(activities=[ProfilerActivity.CPU], with_flops=True) as recorded:
        for _ in range(times):
            work()
    found: Counter[str] = Counter()
    flops = 0.0
    for event in recorded.key_averages():
        group = group_of(event.key)
        found[group] += event.self_cpu_time_total / 1e6 / times
        flops += event.flops / times if group == "matrix products" else 0
    return found, flops


def lines(title: str, work: Callable[[], Any], tokens: int, model_flops: float, rate: float) -> list[str]:
    """A table of one kind of work."""
    seconds = fastest(work, 3)
    found, flops = groups(work)
    total = sum(found.values())
    reached = model_flops / seconds
    page = [
        f"{title}: {seconds * 1e3:,.0f} ms, {tokens / seconds:,.0f} tokens/s, {reached / 1e9:.0f} GFLOP/s by the model's own formulas, "
        f"{reached / rate:.0%} of the matmul rate ({rate / 1e9:.0f})",
        "",
        "| part | ms | of the work |",
        "|---|---|---|",
    ]
    shown = 0.0
    for name, part in found.most_common(9):
        if name == MIXED:
            continue
        what = f"{name} ({flops / part / 1e9:.0f} GFLOP/s)" if name == "matrix products" and flops else name.lstrip("_")
        page.append(f"| {what} | {part * 1e3:,.1f} | {part / total:.0%} |")
        shown += part
    return [*page, f"| everything else | {(total - shown) * 1e3:,.1f} | {(total - shown) / total:.0%} |", ""]


def decode_lines(model: Any, prompt: torch.Tensor, new: int) -> list[str]:
    """What writing `new` tokens takes."""
    model.eval()
    with torch.inference_mode():
        reading = fastest(lambda: model.head(model(prompt, ctx=Context(last=True)).hidden[:, -1]), 6)
        state = model(prompt).state
        calls = 16  # so that positions stay where those of the `new` tokens lie, or close
        capacity = prompt.shape[1] + AHEAD * (calls + 1)
        step, token = model.stepper(state, capacity), prompt[:, 0].contiguous()
        if step is None:
            return ["decode: no prepared step", ""]
        making = fastest(lambda: model.stepper(state, capacity).ahead, 6)

        def again() -> None:
            kept = model.stepper(state, capacity)
            _ = kept.ahead
            kept.close()

        resuming = fastest(again, 6)
        written = len(step.write(token, AHEAD))
        each = fastest(lambda: step.write(token, AHEAD), calls) / written
    used = 4 * (model.num_parameters(active=True) + model.head.weight.numel())
    rate = read_rate()
    total = reading + resuming + (new - 1) * each
    page = [f"decode of {new} tokens after {prompt.shape[1]}: {total * 1e3:.1f} ms at best", "", "| part | ms | of the work |", "|---|---|---|"]
    for name, part in (("reading the prompt", reading), ("going on with the step that is kept", resuming), (f"{new - 1} tokens", (new - 1) * each)):
        page.append(f"| {name} | {part * 1e3:.1f} | {part / total:.0%} |")
    floor = used / rate
    return [
        *page,
        "",
        f"preparing the step anew, in a model's first call: {making * 1e3:.1f} ms",
        f"a token: {each * 1e6:.0f} us; its {used / 1e6:.1f} MB of weights at {rate / 1e9:.0f} GB/s: {floor * 1e6:.0f} us ({floor / each:.0%})",
        "",
    ]
