"""Made-up but plausible results for the tests of the report: whole, partial, failed, hostile. Seeded numpy, no training."""

from __future__ import annotations

import math

import numpy as np

from orrery.compare import result as schema
from orrery.evaluate import statistics

# label -> (asymptote, amplitude, exponent, tokens/s train, prefill, decode, state: bytes = fixed + per token, memory)
KINDS: dict[str, tuple[float, ...]] = {
    "transformer": (1.55, 38.0, 0.229, 21_500, 61_000, 480, 0, 512, 92e6),
    "lstm": (1.62, 40.0, 0.275, 15_800, 30_500, 1310, 4096, 0, 61e6),
    "mamba2": (1.50, 36.0, 0.256, 12_900, 52_000, 620, 74_240, 0, 118e6),
    "gated-deltanet": (1.48, 36.0, 0.262, 8_600, 33_000, 540, 66_048, 0, 131e6),
    "transformer(canon=abcd)": (1.50, 37.5, 0.263, 17_900, 50_200, 390, 9_216, 512, 104e6),
}
LONG = (
    "mamba2*3 + attention(window=128)",
    "gated-deltanet(key_dim=64, value_dim=128)*3 + attention",
    "rwkv4",
    "gru",
    "attention | mamba2(state=64)",
    "./experiments/2026/my_very_own_mixer.py",
    "gpt2",
)
HOSTILE = (
    '<script>alert("x")</script>',
    "\"'><img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script><!--",
    "a & b | c $d_{e}$ [bold]f[/bold] {{ 7*7 }}",
)
CAVEAT = "early in training: ranks data efficiency, not final quality"
LENGTHS = (128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0)


def sample(
    labels: tuple[str, ...] = tuple(KINDS),
    seeds: int = 3,
    tokens: int = 600_000,
    seed: int = 0,
    budget_kind: str = "tokens",
    tasks: bool = True,
) -> schema.ComparisonResult:
    """A finished comparison of `labels` (unknown ones get numbers between the known ones')."""
    random = np.random.default_rng(seed)
    result = schema.ComparisonResult(
        title="orrery compare",
        created="2026-11-22T09:30:00+00:00",
        status="complete",
        command="orrery compare " + " ".join(f"'{label}'" if " " in label else label for label in labels) + f" --budget 600ktok --seeds {seeds}",
        seconds=712.0,
        environment=machine(),
    )
    numbers = list(range(1, seeds + 1))
    kinds = {label: kind_of(label, random) for label in labels}
    result.protocol = protocol(labels, numbers, tokens, budget_kind, kinds)
    common = random.normal(0, 0.02, seeds)  # what a seed does to every architecture alike: the reason for pairing
    for label in labels:
        row = architecture(label, kinds[label], result.protocol, common, random)
        result.architectures.append(row)
        result.runs += runs(row, result.protocol)
    result.floors = [
        schema.Floor("Kneser-Ney 5-gram", 2.497, "counted on the tokens of seed 1", counted(tokens)),
        schema.Floor("bigram", 3.512, "add-one counts"),
    ]
    if tasks:
        result.capabilities = capabilities(labels, random)
    decide(result)
    advise(result)
    return result


def counted(tokens: int) -> schema.Curve:
    """What counting reaches after a tenth, three tenths and all of the tokens."""
    line = [3.11, 2.78, 2.497]
    return schema.Curve([0.1 * tokens, 0.3 * tokens, float(tokens)], values={"1": list(line)}, mean=list(line), low=list(line), high=list(line))


def machine() -> dict[str, object]:
    """What `core.environment` records."""
    return {
        "python": "3.11.9",
        "platform": "Linux-6.1-x86_64",
        "packages": {"orrery-lm": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"},
        "cpu": "AMD EPYC 7R13",
        "cores": 2,
        "memory_bytes": 8_200_000_000,
        "source": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
        "threads": 2,
        "matmul_gflops": 158.2,
    }


def protocol(
    labels: tuple[str, ...], seeds: list[int], tokens: int, kind: str, kinds: dict[str, tuple[float, ...]]
) -> schema.Protocol:
    """Equal tokens, or tokens by training speed when the budget is time."""
    each = {label: tokens if kind == "tokens" else int(kinds[label][3] * 30 // 4096 * 4096) for label in labels}
    family = max(1, len(labels) - 1)
    return schema.Protocol(
        corpus="stdlib",
        corpus_hash="5f2d7c1e9a40",
        train_bytes=31_200_000,
        validation_bytes=262_144,
        validation_documents=41,
        size="nano",
        target_parameters=270_000,
        length=256,
        batch=16,
        steps={label: count // 4096 for label, count in each.items()},
        tokens=each,
        budget="600ktok" if kind == "tokens" else "30s",
        budget_kind=kind,
        equal=[
            "the same training tokens in the same order under each seed",
            "parameters without embedding and head, within 2 %",
            "the same optimizer, schedule, clipping and number of steps",
        ],
        seeds=seeds,
        baseline=labels[0],
        optimizer={"name": "adamw", "weight_decay": 0.1, "betas": [0.9, 0.95], "schedule": "cosine", "warmup": 0.1},
        jobs={"processes": 2, "threads": 1, "why": "two jobs of one thread finished 1.21 times sooner"},
        margin=0.02,
        margin_reason="about one percent of the quality reached",
        family="every architecture against the baseline",
        family_size=family,
        needed_seeds=statistics.least_seeds(family),
        caveat=CAVEAT,
        hash="9c1de0aa41b7",
    )


def kind_of(label: str, random: np.random.Generator) -> tuple[float, ...]:
    """Known numbers, or new ones between them."""
    if label in KINDS:
        return KINDS[label]
    mix = random.dirichlet(np.ones(len(KINDS)))
    logs = np.log(np.array(list(KINDS.values())) + 1.0)
    values = np.exp(mix @ logs) - 1.0
    return (*(float(v) for v in values[:7]), 0.0 if random.random() < 0.5 else 128.0, float(values[8]))


def architecture(
    label: str, kind: tuple[float, ...], protocol: schema.Protocol, common: np.ndarray, random: np.random.Generator
) -> schema.ArchitectureRow:
    """One row with curves, quality and costs."""
    floor, amplitude, exponent, train, prefill, decode, fixed, per_token, memory = kind
    last = protocol.tokens[label]
    x = np.unique(np.round(np.geomspace(8192, last, 24) / 4096) * 4096)
    x[-1] = last
    values = {}
    for i, seed in enumerate(protocol.seeds):
        noise = np.cumsum(random.normal(0, 0.006, x.size)) + common[i] + random.normal(0, 0.008)
        values[str(seed)] = [float(v) for v in floor + amplitude * x**-exponent + noise]
    stack = np.array(list(values.values()))
    curve = schema.Curve([float(v) for v in x], values=values, mean=stack.mean(0).tolist(), low=stack.min(0).tolist(), high=stack.max(0).tolist())
    row = schema.ArchitectureRow(
        label,
        label,
        config={"mixer": label, "width": 128},
        config_hash=f"{abs(hash(label)) % 16**12:012x}" if label.isalnum() else "abcdefabcdef",
        summary="made up",
        paper="1706.03762" if "transformer" in label else "",
        parameters=int(270_000 * (1 + random.uniform(-0.01, 0.01))),
        size_error=0.004,
        learning_rate=schema.LearningRate(float(random.choice([1e-3, 2e-3, 4e-3])), "recorded sweep", "nano, 2026-11-20"),
        curve=curve,
        status="done",
    )
    row.quality = quality({seed: line[-1] for seed, line in values.items()})
    row.costs = costs(row.parameters, train, prefill, decode, fixed, per_token, memory)
    return row


def quality(finals: dict[str, float]) -> schema.Quality:
    """Mean, deviation and t-interval of the finals."""
    values = list(finals.values())
    if not values:
        return schema.Quality()
    interval = statistics.t_interval(values)
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return schema.Quality(finals, float(np.mean(values)), deviation, bounded(interval.low), bounded(interval.high))


def bounded(value: float) -> float | None:
    """None for an infinite end."""
    return value if math.isfinite(value) else None


def costs(parameters: int, train: float, prefill: float, decode: float, fixed: float, per_token: float, memory: float) -> schema.Costs:
    """Costs over length: whatever grows with the state slows down with it."""
    slow = 1 + per_token / 4000
    axis = "context length in tokens"
    return schema.Costs(
        parameters=parameters,
        parameters_total=parameters + 65_536,
        train_speed=schema.Quantity(train, "tokens/s"),
        prefill=schema.Series(axis, "tokens/s", points=[schema.Point(x, prefill / (1 + per_token * x / 2e6)) for x in LENGTHS]),
        decode=schema.Series(axis, "ms/token", points=[schema.Point(x, 1000 / decode * (slow + per_token * x / 1.5e6)) for x in LENGTHS]),
        state=schema.Series(axis, "bytes", "analytic", [schema.Point(x, fixed + per_token * x) for x in LENGTHS]),
        train_memory=schema.Quantity(memory, "bytes"),
        train_flops=schema.Quantity(6.0 * parameters * (1.1 + per_token / 3000), "FLOP/token", "analytic"),
        train_flops_counted=schema.Quantity(5.8 * parameters, "FLOP/token", "counted"),
        matmul_fraction=schema.Quantity(train * 6 * parameters / 158e9, "fraction"),
        train_energy=schema.Quantity(20.0 / train * 1e6, "J/Mtok", "estimated", "no meter: processor seconds x 10 W per core"),
        decode_energy=schema.Quantity(10.0 / decode * 1e3, "J/ktok", "estimated", "no meter: processor seconds x 10 W per core"),
        warm_up=schema.Quantity(0.8, "s"),
        backend="torch",
    )


def runs(row: schema.ArchitectureRow, protocol: schema.Protocol) -> list[schema.RunRow]:
    """Finished runs, one per seed."""
    return [
        schema.RunRow(
            row.label, seed, "done", row.quality.seeds[str(seed)], protocol.steps[row.label], protocol.tokens[row.label], 41.5,
            f"2026-11-22/{row.config_hash[:6]}-s{seed}", row.config_hash,
        )
        for seed in protocol.seeds
    ]  # fmt: skip


def capabilities(labels: tuple[str, ...], random: np.random.Generator) -> list[schema.CapabilityTask]:
    """Recall and state tracking: some solve them, some stay at chance."""
    recall = schema.CapabilityTask(
        "mqar", "associative recall: 8 key-value pairs, length 48", "Can it look up what stood beside a key it saw before?",
        {"pairs": 8, "length": 48}, chance=1 / 64, steps=400, seeds=[1],
    )  # fmt: skip
    states = schema.CapabilityTask(
        "state-tracking", "state tracking: permutations of five, length 32", "Can it follow a state through many changes?",
        {"group": "S5", "length": 32}, chance=1 / 120, steps=400, seeds=[1],
    )  # fmt: skip
    for index, label in enumerate(labels):
        for task, final in ((recall, (0.16, 0.13, 0.98, 0.995, 0.999)[index % 5]), (states, (0.09, 0.96, 0.22, 0.41, 0.11)[index % 5])):
            x = [float(step) for step in range(0, 401, 50)]
            path = [task.chance + (final - task.chance) / (1 + math.exp(-(step - 150) / 30)) for step in x]
            path = [float(min(1.0, max(0.0, v + random.normal(0, 0.008)))) for v in path]
            curve = schema.Curve(x, "training steps", "accuracy", values={"1": path}, mean=list(path), low=list(path), high=list(path))
            solved = next((s for s, v in zip(x, path) if v >= task.solved_at), None)
            task.rows.append(
                schema.CapabilityRow(label, {"1": path[-1]}, path[-1], curve, solved, 66_000, 3e-3, 9.5, "done")
            )
    return [recall, states]


def decide(result: schema.ComparisonResult) -> None:
    """Primary contrasts against the baseline by the real rule, and a noise floor."""
    base = result.row(result.protocol.baseline)
    pairs, deltas = [], []
    for row in result.architectures:
        if row is not base:
            seeds = [s for s in result.protocol.seeds if str(s) in row.quality.seeds and str(s) in base.quality.seeds]
            pairs.append((row.label, seeds))
            deltas.append([row.quality.seeds[str(s)] - base.quality.seeds[str(s)] for s in seeds])
    result.contrasts = []
    for (label, seeds), values, found in zip(
        pairs, deltas, statistics.decide(deltas, result.protocol.margin, family=result.protocol.family_size)
    ):
        one = schema.Contrast(label, base.label, seeds=seeds, deltas=values, margin=result.protocol.margin)
        one.mean, one.low, one.high = bounded(found.interval.estimate), bounded(found.interval.low), bounded(found.interval.high)
        one.interval, one.p, one.p_adjusted, one.p_method = found.interval.method, found.p, found.p_adjusted, found.p_method
        one.needed_seeds, one.verdict = found.needed_seeds, found.verdict
        if one.mean is not None:
            one.documents_low, one.documents_high, one.documents = one.mean - 0.03, one.mean + 0.03, 41
        result.contrasts.append(one)
    if len(result.protocol.seeds) > 1:
        result.noise_floor = schema.NoiseFloor(
            base.label, [0.004, -0.011, 0.007], 0.0, 0.009, 0.011, "no difference shown",
            f"{base.label} against itself with other initial weights, same tokens: differences up to 0.011 bits per byte over 3 seeds",
        )  # fmt: skip


def advise(result: schema.ComparisonResult) -> None:
    """A recommendation of the shape that the comparison writes."""
    best = next((row for row in result.ranked() if row.quality.mean is not None), None)
    if best is None:
        sentence = "Nothing can be recommended, because no architecture has a result within the limits (all failed)."
        result.recommendation = schema.Recommendation(sentence, None, "all failed")
        return
    others = [row for row in result.ranked() if row is not best and row.quality.mean is not None]
    reason = f"it reaches {best.quality.mean:.3f} bits per byte"
    if others:
        reason += f" where the next best, {others[0].label}, reaches {others[0].quality.mean:.3f}"
    reason += ", and decodes at 0.763 ms per token at 1,024 tokens with 4.1 kB of state"
    doubt = f"{len(result.protocol.seeds)} seeds cannot decide (a verdict needs {result.protocol.needed_seeds}), {CAVEAT}"
    result.recommendation = schema.Recommendation(
        f"Take {best.label}: {reason}; but {doubt}.", best.label, reason, doubt, tied=[row.label for row in others[:1]],
        next_command="orrery compare --budget 20Mtok --seeds 6",
    )  # fmt: skip


def twelve() -> schema.ComparisonResult:
    """Twelve architectures with long names and patterns, eight seeds."""
    return sample((*KINDS, *LONG), seeds=8, seed=4)


def one_seed() -> schema.ComparisonResult:
    """Nothing has an interval."""
    return sample(seeds=1)


def hostile() -> schema.ComparisonResult:
    """Names that try to be markup."""
    result = sample(("transformer", *HOSTILE), seed=2)
    result.notes = [HOSTILE[0]]
    result.runs[0].error = HOSTILE[2]
    result.title = HOSTILE[2]
    return result


def failures() -> schema.ComparisonResult:
    """One architecture out of memory throughout, one seed of another not finite, costs and a task missing."""
    result = sample(seed=3)
    lost = result.row("gated-deltanet")
    lost.quality, lost.curve = schema.Quality(), schema.Curve()
    lost.status, lost.error = "oom", "the process was ended while it held 7.9 of 8.2 GB"
    lost.costs = schema.Costs(error="training: RuntimeError: not enough memory: you tried to allocate 4294967296 bytes")
    half = result.row("mamba2")
    del half.quality.seeds["2"]
    half.quality = quality(half.quality.seeds)
    half.curve.values["2"] = [v if i < 9 else None for i, v in enumerate(half.curve.values["2"])]
    half.curve.mean = [v if i < 9 else None for i, v in enumerate(half.curve.mean)]
    half.status, half.error = "failed", "loss is not finite at step 71"
    for run in result.runs:
        if run.architecture == lost.label:
            run.status, run.bits_per_byte, run.error = "oom", None, lost.error
        if run.architecture == half.label and run.seed == 2:
            run.status, run.bits_per_byte, run.error = "failed", None, half.error
    bare = result.row("lstm").costs
    bare.prefill, bare.train_energy = None, schema.Quantity(None, "J/Mtok", "estimated", "no meter")
    if bare.decode is not None:
        bare.decode.points[-1].y = None
    gone = result.capabilities[0].rows[3]
    gone.status, gone.error, gone.mean, gone.seeds, gone.curve = "oom", "no memory", None, {}, schema.Curve()
    result.noise_floor = None
    result.notes = ["gated-deltanet ran out of memory; the other architectures went on."]
    decide(result)
    advise(result)
    return result


def nothing_yet() -> schema.ComparisonResult:
    """A plan without a single finished run."""
    result = sample(tasks=False)
    for row in result.architectures:
        row.quality, row.curve, row.costs, row.status = schema.Quality(), schema.Curve(), schema.Costs(), "pending"
    for run in result.runs:
        run.status, run.bits_per_byte = "pending", None
    result.status, result.contrasts, result.noise_floor, result.recommendation, result.floors = "partial", [], None, None, []
    return result


SAMPLES = {
    "quick": sample,
    "twelve": twelve,
    "one seed": one_seed,
    "hostile": hostile,
    "failures": failures,
    "nothing yet": nothing_yet,
    "time budget": lambda: sample(budget_kind="time", seed=5),
    "no tasks": lambda: sample(tasks=False),
    "single": lambda: sample(("mamba2",), seed=6),
}
