"""`orrery generate`: continue a prompt with a trained model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Optional

import typer

from orrery.cli import output


def generate(
    model: Path = typer.Argument(..., help="A folder of weights, or the folder of a run."),
    prompt: str = typer.Argument("", help="The text to continue; '-' reads standard input."),
    max_new_tokens: int = typer.Option(256, "-n", "--max-new-tokens", help="At most so many tokens."),
    temperature: float = typer.Option(0.8, help="0 takes the best token each time."),
    top_k: Optional[int] = typer.Option(None, help="Draw from the k best tokens."),  # noqa: UP045  typer reads it at run time
    top_p: Optional[float] = typer.Option(None, help="Draw from the fewest tokens whose probabilities reach p."),  # noqa: UP045
    min_p: Optional[float] = typer.Option(None, help="Drop tokens below min_p times the best one's probability."),  # noqa: UP045
    repetition_penalty: float = typer.Option(1.0, help="Above 1: tokens seen before become less likely."),
    stop: list[str] = typer.Option([], help="A string that ends the text (may be repeated)."),
    seed: Optional[int] = typer.Option(None, help="Of the draws; without it every call differs."),  # noqa: UP045
    policy: str = typer.Option("", help="Of a carried state: slide:512, normalise:1.5x, normalise:40 or restart:256."),
    policy_window: int = typer.Option(64, help="Tokens after each of which the policy acts."),
    rope: str = typer.Option("", help="Scale rotary positions: 'yarn(factor=4)', linear, dynamic, llama3; none: as they are without."),
    as_json: bool = typer.Option(False, "--json", help="For machines: prompt, text, settings, seconds."),
) -> None:
    """Continue a prompt, shown as it is written.

    Example:  orrery generate runs/first "def main(" --temperature 0.7 -n 200
    """
    import time

    from orrery.generate import Sampling
    from orrery.generate import generate as run
    from orrery.models.storage import load

    if prompt == "-":
        prompt = sys.stdin.read()
    loaded = stretched(load(weights_folder(model)), rope, model)
    settings = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty)
    if not as_json:
        print(prompt, end="", flush=True)
    started = time.perf_counter()
    text = run(
        loaded,
        prompt,
        max_new_tokens,
        stop=stop,
        seed=seed,
        policy=policy or None,
        policy_window=policy_window,
        on_text=None if as_json else lambda piece: print(piece, end="", flush=True),
        **settings.to_dict(),
    )
    seconds = time.perf_counter() - started
    if as_json:
        output.say_json({"prompt": prompt, "text": text, "settings": settings.to_dict(), "seed": seed, "seconds": seconds})
    else:
        print()


def stretched(loaded: Any, rope: str, path: Path) -> Any:
    """The model, its positions scaled where `--rope` says so; the trained length is the run's, if there is one."""
    if not rope:
        return loaded
    from orrery.methods.stretch import stretch

    return stretch(loaded, rope, trained_length(path))


def trained_length(model: Path) -> int | None:
    """The length that a run's folder says its model was trained at; None for bare weights."""
    from orrery.core.errors import OrreryError
    from orrery.runs import Run

    try:
        return int(Run.open(model).config["data"]["length"])
    except (OrreryError, KeyError, TypeError, ValueError):
        return None


def weights_folder(path: Path) -> Path:
    """The folder of weights: itself, or `weights/` inside a run's folder.

    Raises:
        StorageError: when there is neither.
    """
    from orrery.core.errors import StorageError

    for folder in (path, path / "weights"):
        if (folder / "model.safetensors").is_file():
            return folder
    raise StorageError(f"'{path}' holds no model (no model.safetensors in it or in its weights/); train one with `orrery train`")
