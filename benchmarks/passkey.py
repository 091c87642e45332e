"""How far back can it remember? `python benchmarks/passkey.py mamba2 lstm --train 64 --lengths 64 256 1024 4096`

Trains a small model (two layers of width 64, as the capability part of `orrery compare`) on passkeys of one length and
tests it at others, reading with the state carried. A name may carry settings: "mamba2(state=16)". Chance is 0.1 a digit.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from orrery.compare import capability
from orrery.data import create_task
from orrery.evaluate.recall import accuracy_by_length


def measure(name: str, task: str, steps: int, rate: float, lengths: list[int], examples: int, seed: int) -> dict[str, Any]:
    """One model: training and a row for every length."""
    setting = capability.Setting(task, task, "", steps=steps)
    model = capability.build(name, setting, seed)
    trained = capability.train(model, setting, rate, seed)
    rows = accuracy_by_length(model, create_task(task), lengths, examples)
    known: Any = model
    return {"name": name, "task": task, "trained": trained, "state_bytes": known.state_bytes(1 << 16), "rows": rows}


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="architectures")
    parser.add_argument("--train", type=int, default=64, help="length of training examples")
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048, 4096])
    parser.add_argument("--task", default="passkey", help="the task with its settings but length, as passkey(digits=5,filler=repeat)")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    name, _, rest = options.task.partition("(")
    task = f"{name}(length={options.train}{', ' + rest.rstrip(')') if rest else ''})"
    chance = create_task(task).chance
    if not options.json:
        how = f"{options.steps} steps of 64 examples, {torch.get_num_threads()} threads"
        print(f"{task}, {how}; accuracy of digits, chance {chance:g}; 95 % over examples")
    for each in options.names:
        found = measure(each, task, options.steps, options.rate, options.lengths, options.examples, options.seed)
        if options.json:
            print(json.dumps(found))
            continue
        print(f"{each}: {found['state_bytes']:,} bytes of state at 64k; {found['trained']['accuracy']:.3f} after {found['trained']['steps']} steps")
        for row in found["rows"]:
            print(f"  {row['length']:7,}  {row['accuracy']:.3f}  ({row['low']:.3f} to {row['high']:.3f})  whole keys {row['whole']:.3f}")


if __name__ == "__main__":
    main()
