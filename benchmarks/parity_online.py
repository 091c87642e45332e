"""Equal logits on real checkpoints, for people with a network: `python benchmarks/parity_online.py` (or `make parity-online`).

Downloads openai-community/gpt2, AntonV/mamba2-130m-hf and
RWKV/rwkv-4-169m-pile, about 1.5 GB in all, through transformers, and compares logits on a paragraph, both ways. Exit code 1
when a difference exceeds 1e-3 of the largest logit (float32 through 12 to 24 layers). The test suite does the same on
small random models without a network.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

import orrery

MODELS = ("openai-community/gpt2", "AntonV/mamba2-130m-hf", "RWKV/rwkv-4-169m-pile")
TEXT = "An orrery is a mechanical model of the planets that really moves. Every part of it can be taken out and looked at."
BOUND = 1e-3  # of the largest logit


def check(name: str) -> float:
    """Largest relative difference of logits, here and after a way there and back."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokens = torch.tensor([AutoTokenizer.from_pretrained(name)(TEXT)["input_ids"]])
    theirs = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    own = orrery.from_transformers(theirs).eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        orrery.to_transformers(own, Path(folder) / "back")
        back = AutoModelForCausalLM.from_pretrained(Path(folder) / "back").eval()
        expected = theirs(tokens).logits
        return max(float((m(tokens).logits - expected).abs().max() / expected.abs().max()) for m in (own, back))


def main() -> int:
    """Check every model; say which could not be had."""
    failed = 0
    for name in MODELS:
        try:
            difference = check(name)
        except OSError as error:
            print(f"{name}: not checked, it could not be downloaded ({str(error).splitlines()[0]})")
            failed += 1
            continue
        verdict = "equal" if difference <= BOUND else "DIFFERENT"
        failed += difference > BOUND
        print(f"{name}: {verdict}, largest difference {difference:.1e} of the largest logit")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
