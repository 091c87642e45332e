"""What an architecture costs here: measured alone in a fresh process, all cores its own, warm-up apart.

    training     whole steps (objective, backward pass, clipping, optimizer) at the protocol's batch and length
    prefill      one prompt of x tokens read at once, batch 1
    decode       one more token after x tokens, batch 1, through `orrery.generate`'s own loop (greedy)
    state        bytes of state per sequence after x tokens, by the model's own formula (which the contract tests check)
    memory       peak resident size during training steps, above the process before the model was built
    operations   training FLOPs per token: the model's formula times three, and as counted by torch's FlopCounterMode,
                 which sees matrix products but neither elementwise work nor compiled loops nor fused CPU attention
    energy       see :mod:`orrery.compare.energy`

Weights are the initial ones and tokens random: speed does not depend on what a dense model has learnt.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orrery.compare import instruments
from orrery.compare.candidates import FLOPS
from orrery.compare.energy import Joules, meter
from orrery.compare.result import Costs, Point, Quantity, Series
from orrery.core import registry
from orrery.core.config import Config
from orrery.core.errors import OrreryError
from orrery.generate.engine import decode_steps
from orrery.generate.sampling import Sampling
from orrery.objectives import create_objective
from orrery.ops.backend import current_backend, forget_backends
from orrery.train.budget import training_flops
from orrery.train.engine import Engine, Pair

AXIS = "context length in tokens"
LONGEST_WAIT = 8.0  # seconds: a longer prefill or decode is left out, and the series says so


@dataclass(frozen=True, kw_only=True)
class CostPlan(Config):
    """What is measured; the defaults suit small models on a desk."""

    batch: int = 16
    length: int = 256
    lengths: tuple[int, ...] = (128, 512, 2048)
    state_lengths: tuple[int, ...] = (128, 512, 2048, 8192, 32768)
    new_tokens: int = 24
    seconds: float = 2.0  # of timed repetitions per measurement
    clip: float = 1.0


def measure(build: Callable[[], nn.Module], plan: CostPlan) -> Costs:
    """Costs of the model that `build` makes. Call it in a fresh process that does nothing else.

    A part that fails leaves its field empty and its reason in `error`; the other parts are still measured.
    """
    costs, errors = Costs(), []
    forget_backends()
    torch.zeros(8, 8) @ torch.zeros(8, 8)  # the thread pool is not the model's memory
    rate = instruments.matmul_rate()
    gc.collect()
    idle = instruments.peak_memory()
    model = build()
    parts: dict[str, Callable[[], None]] = {
        "sizes": lambda: _sizes(model, costs),
        "training": lambda: _training(model, plan, costs, idle),  # first: the high-water mark must be its own
        "operations": lambda: _operations(model, plan, costs),
        "prefill": lambda: _prefill(model, plan, costs),
        "decode": lambda: _decode(model, plan, costs),
        "state": lambda: _state(model, plan, costs),
    }
    for name, part in parts.items():
        try:
            part()
        except (OrreryError, RuntimeError, TypeError, AttributeError, MemoryError) as error:
            errors.append(f"{name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    if costs.train_speed and costs.train_flops and costs.train_speed.value and costs.train_flops.value:
        share = costs.train_speed.value * costs.train_flops.value / rate
        note = f"achieved training FLOP/s over {rate / 1e9:.1f} GFLOP/s of a {instruments.MATMUL}^2 float32 product"
        costs.matmul_fraction = Quantity(share, "fraction", "measured", note)
    costs.backend = ", ".join(f"{op}: {name}" for op, name in current_backend().items())
    costs.error = "; ".join(errors)
    return costs


def random_batch(vocab_size: int, batch: int, length: int) -> dict[str, Tensor]:
    """A batch of random tokens (B,T+1)."""
    tokens = torch.randint(0, vocab_size, (batch, length + 1), generator=torch.Generator().manual_seed(0))
    return {"tokens": tokens}


def train_step(model: nn.Module, batch: dict[str, Tensor], clip: float = 1.0) -> Callable[[], None]:
    """One whole optimizer step, the trainer's own, as a function of nothing; the rate is tiny, so weights stay sound."""
    pair = Pair(model, create_objective("next-token"))
    engine = Engine(pair, registry.load("adamw", "optimizer")(pair, 1e-6), lambda step: 1e-6, clip)

    def step() -> None:
        engine.step(0, batch)

    return step


def _sizes(model: Any, costs: Costs) -> None:
    costs.parameters = int(model.num_parameters())
    costs.parameters_total = int(model.num_parameters(embedding=True))


def _training(model: nn.Module, plan: CostPlan, costs: Costs, idle: int) -> None:
    model.train()
    step = train_step(model, random_batch(vocabulary(model), plan.batch, plan.length), plan.clip)
    begin = time.perf_counter()
    for _ in range(3):
        step()
    warm = time.perf_counter() - begin
    note = f"batch {plan.batch} x {plan.length} tokens, float32, above an idle process with torch loaded"
    costs.train_memory = Quantity(float(max(0, instruments.peak_memory() - idle)), "bytes", "measured", note)
    stop = meter()
    timing = instruments.timed(step, plan.seconds, warm=1)
    tokens = plan.batch * plan.length
    shape = f"median of {timing.count} steps of {plan.batch} x {plan.length} tokens, {torch.get_num_threads()} threads"
    costs.train_speed = Quantity(tokens / timing.median, "tokens/s", "measured", shape)
    spare = max(0.0, warm + timing.first - 4 * timing.median)
    costs.warm_up = Quantity(spare, "s", "measured", "what the first steps took beyond a usual one")
    costs.train_energy = _energy(stop(), (timing.count + 1) * tokens / 1e6, "J/Mtok", "million training tokens")


def _operations(model: Any, plan: CostPlan, costs: Costs) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    analytic = training_flops(float(model.flops(plan.length))) / plan.length
    costs.train_flops = Quantity(analytic, "FLOP/token", "analytic", FLOPS)
    batch = random_batch(vocabulary(model), 1, plan.length)
    objective = create_objective("next-token")
    with FlopCounterMode(display=False) as counter:
        objective(model, batch)[0].backward()
    model.zero_grad(set_to_none=True)
    counted = counter.get_total_flops() / plan.length
    costs.train_flops_counted = Quantity(
        counted, "FLOP/token", "counted", "by torch FlopCounterMode, which misses elementwise work, fused CPU attention and compiled loops"
    )


@torch.inference_mode()
def _prefill(model: Any, plan: CostPlan, costs: Costs) -> None:
    model.eval()
    series = Series(AXIS, "tokens/s", "measured", note="batch 1, scores of the last token only")
    slowest = 0.0
    for length in plan.lengths:
        tokens = random_batch(vocabulary(model), 1, length)["tokens"][:, 1:]
        if _too_long(slowest, length, series):
            continue
        try:
            timing = instruments.timed(lambda tokens=tokens: _read(model, tokens), plan.seconds / 4, least=3, most=50)  # type: ignore[misc]
        except OrreryError as error:
            series.points.append(Point(float(length), None))
            series.note += f"; {length}: {error}"
            continue
        slowest = timing.median / length
        series.points.append(Point(float(length), length / timing.median))
    costs.prefill = series


def _read(model: Any, tokens: Tensor) -> Tensor:
    hidden = model(tokens).hidden[:, -1]
    head = getattr(model, "head", None)
    return head(hidden) if head is not None else hidden


def _decode(model: Any, plan: CostPlan, costs: Costs) -> None:
    series = Series(AXIS, "ms/token", "measured", note=f"batch 1, greedy, median of {plan.new_tokens - 4} tokens")
    greedy, slowest = Sampling(temperature=0.0), 0.0
    energy: Joules | None = None
    for length in plan.lengths:
        tokens = random_batch(vocabulary(model), 1, length)["tokens"][:, 1:]
        if _too_long(slowest, plan.new_tokens, series, length):
            continue
        try:
            times, energy = _token_times(model, tokens, plan.new_tokens, greedy)
        except OrreryError as error:
            series.points.append(Point(float(length), None))
            series.note += f"; {length}: {error}"
            continue
        slowest = sorted(times)[len(times) // 2]
        series.points.append(Point(float(length), 1e3 * slowest))
    costs.decode = series
    if energy is not None:
        costs.decode_energy = _energy(energy, (plan.new_tokens - 1) / 1e3, "J/ktok", "thousand decoded tokens")


def _token_times(model: nn.Module, tokens: Tensor, count: int, greedy: Sampling) -> tuple[list[float], Joules]:
    """Seconds from each new token to the next (prefill and the first steps left out), and the energy of all of them."""
    steps = decode_steps(model, tokens, None, count, greedy, None, True)
    next(steps)
    stop = meter()
    times, before = [], time.perf_counter()
    for _ in steps:
        now = time.perf_counter()
        times.append(now - before)
        before = now
    return times[3:] or times, stop()


def _state(model: Any, plan: CostPlan, costs: Costs) -> None:
    points = [Point(float(length), float(model.state_bytes(length))) for length in plan.state_lengths]
    costs.state = Series(AXIS, "bytes", "analytic", points, "per sequence, float32 states")


def _too_long(per_token: float, count: int, series: Series, length: int | None = None) -> bool:
    """Note and skip a point that would take longer than a user waits; costs may grow with length, so twice is assumed."""
    if per_token * count * 2 <= LONGEST_WAIT:
        return False
    series.points.append(Point(float(length or count), None))
    series.note += f"; {length or count} left out: longer than {LONGEST_WAIT:g} s"
    return True


def _energy(joules: Joules, per: float, unit: str, words: str) -> Quantity:
    return Quantity(joules.value / per, unit, joules.how, f"per {words}; {joules.note}")


def vocabulary(model: Any) -> int:
    """V of a model."""
    return int(model.vocab_size)


def busy(cores: int | None = None) -> str:
    """A sentence when other work loads this machine, so that its times are not to be trusted; else empty."""
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):
        return ""
    cores = cores or os.cpu_count() or 1
    if load <= 0.5 * cores:
        return ""
    return f"the machine was busy when costs were measured (load {load:.1f} on {cores} cores): speeds are lower than they could be"
