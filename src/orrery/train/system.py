"""What a run asks of the machine: device, threads, precision, compilation, recomputation, signals, and its memory."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from torch import nn

from orrery.core.errors import ConfigError

_COMPILE_ERRORS = (RuntimeError, OSError, ImportError, AssertionError, AttributeError, TypeError, ValueError)


def pick_device(name: str) -> torch.device:
    """The device of a name; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: when it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"the device '{name}' cannot be used here ({str(error).splitlines()[0]}); use system.device=cpu"
        ) from error
    return device


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch use `number` threads on the CPU for the time of the block; 0 leaves them as they are."""
    before = torch.get_num_threads()
    if number:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def autocast(device: torch.device, dtype: str) -> AbstractContextManager[Any]:
    """Forward passes in bfloat16, or nothing for float32."""
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def recompute_blocks(model: nn.Module) -> None:
    """Activation checkpointing of every block of a frame.

    Raises:
        ConfigError: for a model that has no blocks to recompute.
    """
    if not hasattr(model, "checkpoint_blocks"):
        raise ConfigError(f"{type(model).__name__} has no blocks that could be recomputed; leave system.recompute off")
    cast(Any, model).checkpoint_blocks = True


def compile_blocks(model: nn.Module, backend: str) -> str:
    """Compile each block of a frame where that works on this machine; say aloud when it does not.

    Returns:
        What was done, for the record: "off", the backend, or "off: reason".
    """
    if backend == "off":
        return "off"
    blocks = getattr(model, "blocks", None)
    if blocks is None:
        reason = f"{type(model).__name__} has no blocks"
    else:
        reason = _probe(backend)
    if reason:
        print(f"orrery: torch.compile is not used: {reason}", file=sys.stderr, flush=True)
        return f"off: {reason}"
    for block in blocks or ():
        block.compile(backend=backend)
    return backend


def _probe(backend: str) -> str:
    """Why a trivial function cannot be compiled here; empty when it can."""
    try:
        compiled = torch.compile(lambda x: torch.sin(x) + 1, backend=backend)
        right = torch.allclose(compiled(torch.ones(8)), torch.sin(torch.ones(8)) + 1)
    except _COMPILE_ERRORS as error:
        return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
    finally:
        torch.compiler.reset()
    return "" if right else "the compiled test function gave a wrong answer"


class Interrupt:
    """Whether somebody asked to stop: the first Ctrl-C (or termination signal) asks, the second breaks at once."""

    requested = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\norrery: finishing this step, then saving; once more to stop at once", file=sys.stderr, flush=True)


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Turn Ctrl-C and termination into a request for the time of the block (in the main thread; elsewhere nothing)."""
    request = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.signal(number, request._ask) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def peak_memory(device: torch.device) -> int | None:
    """Greatest memory so far in bytes: of the allocator on CUDA, of the whole process elsewhere; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:  # getrusage would begin at the mark of the process that started this one
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    if sys.platform == "win32":
        import psutil

        return getattr(psutil.Process().memory_info(), "peak_wset", None)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def seat() -> tuple[int, int]:
    """(rank, world size) of this process: those of torch.distributed where it is running, else (0, 1)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
