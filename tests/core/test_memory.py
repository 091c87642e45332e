"""Large blocks stay in the process: fewer page faults for the same work, same numbers."""

import subprocess
import sys

import pytest

# Blocks of 36 MB: up to 32 MB glibc may come to keep them by itself.
CODE = """
import resource, torch
from orrery.core.memory import keep_large_blocks
kept = keep_large_blocks() if {keep} else False
def work():
    return float(sum(torch.ones(9 << 20).mul(2).add(1).sum() for _ in range(20)))
first = work()
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
assert work() == first
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the switch exists in glibc only")
def test_blocks_are_kept():
    faults = {}
    for keep in (False, True):
        run = subprocess.run([sys.executable, "-c", CODE.format(keep=keep)], capture_output=True, text=True, check=True)
        kept, count = run.stdout.split()
        faults[keep] = int(count)
        if keep and kept == "False":
            pytest.skip("this C library has no mallopt")
    assert faults[True] < faults[False] / 10
