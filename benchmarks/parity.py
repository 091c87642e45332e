"""Write benchmarks/PARITY.md: every mixer against its independent oracle, and which contract checks it passes.

    python benchmarks/parity.py [NAME ...]
    python benchmarks/parity.py --exchange        # only the last table, against transformers; put into the file

An oracle is a float64 loop in numpy, written from the paper's equations (tests/oracles/), which knows neither torch nor
orrery. Parameters are random, not initial ones. Two rows of 23 tokens are run as one document and as three. The forward
error is the largest difference divided by the largest output; the gradient error compares autograd with central
differences of the oracle along one random direction for the input and for each parameter, relative to the gradient's
size (differences of a float64 function are themselves only good to about 1e-8).
"""

from __future__ import annotations

import datetime
import importlib
import platform
import sys
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "src"), str(HERE.parent / "tests")]

from orrery.core import registry  # noqa: E402
from orrery.core.environment import cpu_name  # noqa: E402
from orrery.core.errors import OrreryError  # noqa: E402
from orrery.testing import DISABLED, TOLERANCES, checks_for  # noqa: E402
from orrery.testing.mixer_numbers import oracle_errors  # noqa: E402
from orrery.testing.subject import Oracle, subjects  # noqa: E402
from orrery.testing.tags import MODELS_DISABLED  # noqa: E402
from orrery.testing.tolerance import DIFFERENCE, FLOPS, ORACLE  # noqa: E402


def oracle_of(name: str) -> Oracle | None:
    plain = name.replace("-", "_")
    try:
        return getattr(importlib.import_module(f"oracles.{plain}"), plain)
    except ModuleNotFoundError:
        return None


def parity_rows(name: str) -> list[str]:
    """One table row for each variant of a mixer."""
    oracle, rows = oracle_of(name), []
    for subject in subjects(name, oracle=oracle):
        if subject.canon:
            continue
        if oracle is None:
            rows.append(f"| `{subject.label}` | none | | | | |")
            continue
        numbers = []
        for dtype in (torch.float64, torch.float32):
            forward, gradient = oracle_errors(subject, dtype)
            numbers += [f"{forward:.1e}", "surrogate" if "surrogate" in subject.tags else f"{gradient:.1e}"]
        rows.append(f"| `{subject.label}` | tests/oracles/{name.replace('-', '_')}.py | " + " | ".join(numbers) + " |")
    return rows


def check_row(name: str) -> tuple[str, int]:
    """A table row of how many checks ran, failed and do not apply; and the number of failures."""
    failed, disabled, ran = [], {}, 0
    for check in checks_for(name, oracle=oracle_of(name)):
        if check.disabled:
            if not (check.name == "oracle" and "canon=" in check.subject):
                disabled[check.name] = check.disabled
            continue
        ran += 1
        try:
            check()
        except AssertionError as problem:
            failed.append(check.name)
            print(problem, file=sys.stderr)
    reasons = "; ".join(f"{key} ({reason})" for key, reason in disabled.items()) or "none"
    return f"| `{name}` | {ran} | {', '.join(failed) or 0} | {reasons} |", len(failed)


EXCHANGED = {  # model types that an architecture's default settings do not lead to -> settings that do
    "falcon_mamba": {"mixer.norm_eps": 1e-6},
    "qwen3_moe": {"mixer.qk_norm": True},
    "recurrent_gemma": {"softcap": 30.0},
    "nemotron_h": {"tied": False},  # their class has a head of its own, so that a tied one's gradient stands in two places
    "qwen3_5_moe_text": {"pattern": "linear-moe*3 + full-moe"},
    "kimi_linear": {"pattern": "linear + linear-moe*2 + full-moe", "tied": False},  # a head of its own, as nemotron_h
    "bailing_hybrid": {"pattern": "linear + linear-moe*2 + full-moe", "tied": False},
    "deepseek_v3": {"pattern": "full + full-moe*3", "tied": False},
    "zamba": {"pattern": "mamba + hybrid"},
}
SCALED = {  # scalings of positions of texts three times as long as those trained on; beside the rows without any
    "llama": ("linear(factor=3)", "yarn(factor=3, original=8)", "llama3(factor=3, original=8)"),
    "deepseek_v3": ("yarn(factor=40, original=8, mscale=0.7, mscale_all=1.1)",),
    "zaya": ("yarn(factor=3, original=8, part=0.5)",),
}
EXCHANGE = [
    "## Against transformers",
    "",
    "Models of this house at width 64 and 4 layers (xlstm 128), their parameters moved by 0.1 randn away from where they begin, written",
    "with `to_transformers` and read by transformers: the largest difference of the logits (of the hidden states where there is no",
    "language model) divided by the largest, in float32 and in float64 (transformers' casts to float32 lifted); the gradient of",
    "the embedding for the mean square of the same; and whether greedy generation of 12 ids with their cache gives ours. Encoder-decoders",
    "answer with a head of two labels here; what they write is compared in their tests. A scaling of positions (mixer.rope) stands behind",
    "the architecture.",
    "",
    "| model type | architecture | their class | float32 | float64 | gradient, float32 | cached generation |",
    "| --- | --- | --- | --- | --- | --- | --- |",
]


def answer(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Logits, or hidden states where there are none; of ours and of theirs."""
    out = model(tokens)
    found = getattr(out, "logits", None)
    if found is None and hasattr(out, "start_logits"):
        return torch.stack([out.start_logits, out.end_logits], -1)
    if found is None:
        found = out.hidden if hasattr(out, "hidden") else out.last_hidden_state
    return found


def apart(found: torch.Tensor, wanted: torch.Tensor) -> str:
    return f"{float((found - wanted).abs().max() / wanted.abs().max()):.1e}"


def exchange_row(model_type: str, architecture: str, **more: object) -> str:
    """A table row for one exchange map; `more` settings of the model."""
    import transformers

    import orrery
    from all_double import AllDouble, double

    settings = {**EXCHANGED.get(model_type, {}), **more}
    width = 128 if architecture == "xlstm-large" else 64
    own = orrery.create_model(architecture, width=width, depth=4, vocab_size=61, seed=0, **settings).eval()
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
    tokens = torch.randint(3, 61, (2, 23), generator=noise)
    if "head" in more:
        tokens[:, -1] = own.config.stop
    with tempfile.TemporaryDirectory() as folder:
        orrery.to_transformers(own, Path(folder) / "model")
        config = transformers.AutoConfig.from_pretrained(Path(folder) / "model")
        assert config.model_type == model_type, f"{architecture} was written as {config.model_type}, not {model_type}"
        cls = getattr(transformers, config.architectures[0])
        theirs = cls.from_pretrained(Path(folder) / "model", dtype=torch.float32, experts_implementation="eager").eval()
    with torch.no_grad():
        found, wanted = answer(own, tokens), answer(theirs, tokens)
    single = apart(found, wanted)
    root = own.config.width**0.5 if model_type == "recurrent_gemma" else 1.0  # a factor of theirs that is a part of our embedding
    slopes = []
    for model in (own, theirs):
        out = answer(model.train(model_type == "rwkv"), tokens)  # in evaluation their RWKV changes its weights in place
        model.eval()
        weight = model.embed.weight if model is own else model.get_input_embeddings().weight
        slopes.append(torch.autograd.grad(out.square().mean(), weight)[0][3:])  # some of theirs leave ids of padding out
    slopes[0] = slopes[0] * root
    written = "no language model"
    if hasattr(theirs, "generate") and found.shape[-1] == 61:
        ours = orrery.generate(own, tokens, 12, temperature=0)
        greedy = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        greedy["attention_mask"] = torch.ones_like(tokens)
        written = "equal" if torch.equal(ours, theirs.generate(tokens, **greedy)) else "**differs**"
        if written != "equal" and torch.equal(ours, theirs.generate(tokens, use_cache=False, **greedy)):
            written = "equal to theirs without a cache, from which theirs with one differs"
    with torch.no_grad(), AllDouble():
        wide = apart(answer(own.double(), tokens), answer(double(theirs), tokens))
    named = f"`{architecture}`" + (f", `{more['mixer.rope']}`" if "mixer.rope" in more else "")
    row = (f"`{model_type}`", named, cls.__name__, single, wide, apart(*slopes), written)
    return "| " + " | ".join(row) + " |"


def exchange_table() -> list[str]:
    """One row for every exchange map of a model that reads tokens, an encoder-decoder with its heads (one that writes has its tests)."""
    lines = list(EXCHANGE)
    for entry in registry.entries("architecture"):
        for model_type in entry.exchange:
            if entry.name == "t5-encoder" or model_type in ("camembert", "xlm-roberta"):  # roberta under other names
                continue
            pair = "encoder-decoder" in entry.tags
            heads = [{"head": head, "labels": 2} for head in ("classification", "span")]
            scaled = [{"mixer.rope": rope} for rope in SCALED.get(model_type, ())]
            for more in heads if pair else [{}, *scaled]:
                try:
                    lines.append(exchange_row(model_type, entry.name, **more))
                except (OrreryError, RuntimeError, AssertionError) as problem:  # a row that could not be made says so
                    lines.append(f"| `{model_type}` | `{entry.name}` | not made: {type(problem).__name__}: {str(problem)[:120]} | | | | |")
                print(lines[-1], flush=True)
    return [*lines, ""]


def tables() -> list[str]:
    """The tolerance table and the size of the tag tables."""
    lines = ["| dtype | forward | gradient |", "| --- | --- | --- |"]
    for dtype, row in TOLERANCES.items():
        lines.append(f"| {str(dtype).removeprefix('torch.')} | {row.value:g} | {row.gradient:g} |")
    entries = [(tag, check, why) for tag, checks in DISABLED.items() for check, why in checks.items()]
    lines += [
        "",
        (
            f"Against the oracle {ORACLE:g} (forward) and {DIFFERENCE:g} (gradient, by differences); operations within "
            f"{100 * FLOPS:g} % of what is counted; bytes of state exactly. bfloat16 is judged by the ratio of root mean squares."
        ),
        "",
        (
            f"The tag table of mixers switches off {len(entries)} pairs of a tag and a check "
            f"({sum(map(len, MODELS_DISABLED.values()))} of models):"
        ),
        "",
        "| tag | checks | why |",
        "| --- | --- | --- |",
    ]
    for tag, checks in DISABLED.items():
        for why in dict.fromkeys(checks.values()):
            names = ", ".join(check for check, reason in checks.items() if reason == why)
            lines.append(f"| {tag} | {names} | {why} |")
    return lines


def main() -> int:
    torch.set_num_threads(1)
    file = HERE / "PARITY.md"
    if sys.argv[1:] == ["--exchange"]:
        kept = file.read_text(encoding="utf-8").split("\n" + EXCHANGE[0])[0].rstrip("\n")
        file.write_text("\n".join([kept, "", *exchange_table()]), encoding="utf-8")
        return 0
    today = datetime.datetime.now(datetime.timezone.utc).date()
    names = sys.argv[1:] or registry.names(kind="mixer")
    parity = [row for name in names for row in parity_rows(name)]
    checked = [check_row(name) for name in names]
    text = [
        "# Parity with independent oracles, and the contract",
        "",
        *(__doc__ or "").split("\n\n", 2)[2].strip().splitlines(),
        "",
        (
            f"Made by `python benchmarks/parity.py` on {today}, torch {torch.__version__}, Python "
            f"{platform.python_version()}, {cpu_name()}, one thread, backends chosen by the automatic rule."
        ),
        "",
        "## Errors against the oracle",
        "",
        "| mixer | oracle | forward, float64 | gradient, float64 | forward, float32 | gradient, float32 |",
        "| --- | --- | --- | --- | --- | --- |",
        *parity,
        "",
        "## Contract checks",
        "",
        "| mixer | run | failed | do not apply (why) |",
        "| --- | --- | --- | --- |",
        *(row for row, _ in checked),
        "",
        "## Tolerances",
        "",
        *tables(),
        "",
        *([] if sys.argv[1:] else exchange_table()),
    ]
    if not sys.argv[1:]:
        file.write_text("\n".join(text), encoding="utf-8")
    print("\n".join(text))
    return 1 if any(failures for _, failures in checked) else 0


if __name__ == "__main__":
    sys.exit(main())
