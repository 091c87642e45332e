"""Checkpoints: everything that decides the next step, whole or absent, checked before it is believed.

    checkpoint/              the newest; older ones are checkpoint-STEP/, as many as `keep` says
      weights.safetensors    parameters and buffers
      carried.safetensors    where a state is carried from step to step: its tensors
      optimizer.safetensors  the optimizer's tensors, as PARAMETER.KEY, and the states of torch's random generators
      state.json             format, step, config hash, plain numbers of the optimizer, other generators, the trainer's record
      manifest.json          size and SHA-256 of the above

A new checkpoint is built and sealed as `checkpoint-next/` beside the others and then takes its place by renames, so at
every moment a whole one exists; which one is newest is read from `state.json`, not from its name. Nothing is pickled.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from orrery.core.errors import ConfigError, CorruptionError, OrreryError, StorageError
from orrery.core.files import atomic_directory, read_json, sweep_temporary, verify_directory, write_json
from orrery.models.storage import read_weights, stored_tensors

FORMAT = 1
NEWEST, NEXT = "checkpoint", "checkpoint-next"
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.safetensors", "state.json"
CARRIED = "carried.safetensors"
_RANDOM = "random"  # prefix of generator states among the optimizer's tensors


class Checkpoints:
    """The checkpoints of one run's folder."""

    def __init__(self, folder: str | Path, config_hash: str, keep: int = 2) -> None:
        self.folder, self.config_hash, self.keep = Path(folder), config_hash, keep
        self.latest: int | None = None  # step of the newest whole one
        self.carried: dict[str, Tensor] = {}  # of the one that was restored

    def save(
        self,
        step: int,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        record: dict[str, Any],
        carried: dict[str, Tensor] | None = None,
    ) -> Path:
        """Write a checkpoint after `step` steps. `record` is the trainer's own, JSON-able; `carried` are tensors of its own.

        Raises:
            StorageError: when the disk is full or cannot be written; the older checkpoints are intact.
        """
        tensors, numbers = _optimizer_state(module, optimizer)
        tensors |= {f"{_RANDOM}.{name}": value for name, value in _torch_generators().items()}
        state = {
            "format": FORMAT,
            "step": step,
            "config_hash": self.config_hash,
            "threads": torch.get_num_threads(),
            "optimizer": numbers,
            "random": _plain_generators(),
            "record": record,
        }
        try:
            with atomic_directory(self.folder / NEXT) as part:
                save_file(stored_tensors(module), part / WEIGHTS)
                save_file(tensors, part / OPTIMIZER)
                if carried:
                    save_file(carried, part / CARRIED)
                write_json(part / STATE, state)
        except SafetensorError as error:
            where = self.folder / NEXT
            raise StorageError(
                f"cannot write '{where}': {error}; the older checkpoints are intact, free some space"
            ) from error
        self._promote()
        self.latest = step
        return self.folder / NEWEST

    def restore(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]] | None:
        """Load the newest whole checkpoint into a module, its optimizer and the random generators.

        Returns:
            The number of steps taken and the trainer's record; None when there is no checkpoint at all.

        Raises:
            CorruptionError: when there are checkpoints, but none is whole.
            ConfigError: when the newest belongs to another configuration or architecture.
        """
        sweep_temporary(self.folder)
        damage: list[str] = []
        for path in self._newest_first():
            try:
                verify_directory(path)
                state = read_json(path / STATE)
                if (
                    not isinstance(state, dict)
                    or state.get("format") != FORMAT
                    or not isinstance(state.get("step"), int)
                ):
                    raise CorruptionError(
                        f"'{path / STATE}' is of an unknown format; this version reads format {FORMAT}"
                    )
            except OrreryError as error:
                damage.append(str(error))
                _say(f"checkpoint '{path.name}' is not used: {error}")
                continue
            if state["config_hash"] != self.config_hash:
                raise ConfigError(
                    f"'{path}' belongs to another configuration or model ({state['config_hash']}, not {self.config_hash})"
                )
            self._load(path, state, module, optimizer)
            self._settle(path)
            self.latest = state["step"]
            return state["step"], state["record"]
        if damage:
            raise CorruptionError(
                f"no checkpoint in '{self.folder}' is whole ({damage[0]}); delete them to start again"
            )
        return None

    def remove(self) -> None:
        """Delete all checkpoints: the run is finished and its weights are saved."""
        for path in self.folder.glob("checkpoint*"):
            shutil.rmtree(path, ignore_errors=True)
        self.latest = None

    def _load(self, path: Path, state: dict[str, Any], module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        try:
            tensors = load_file(path / OPTIMIZER)
        except SafetensorError as error:
            raise CorruptionError(f"'{path / OPTIMIZER}' is damaged: {error}") from error
        self.carried = load_file(path / CARRIED) if (path / CARRIED).exists() else {}
        read_weights(module, path / WEIGHTS)
        _restore_optimizer(module, optimizer, tensors, state["optimizer"], path)
        _restore_generators(tensors, state["random"])
        if state["threads"] != torch.get_num_threads():
            _say(
                f"this checkpoint was made with {state['threads']} threads and is continued with {torch.get_num_threads()}: "
                "the result will not equal an uninterrupted run's bit for bit"
            )

    def _newest_first(self) -> list[Path]:
        """All checkpoint folders by their step; those whose step cannot be read come first, to be named as damaged."""
        steps: dict[Path, float] = {}
        for path in self.folder.glob("checkpoint*"):
            if not path.is_dir():
                continue
            try:
                steps[path] = float(read_json(path / STATE)["step"])
            except (OrreryError, KeyError, TypeError, ValueError):
                steps[path] = float("inf")
        return sorted(steps, key=lambda path: (-steps[path], path.name))

    def _promote(self) -> None:
        """`checkpoint-next` becomes `checkpoint`, which becomes `checkpoint-STEP`; what is too old goes."""
        newest, following = self.folder / NEWEST, self.folder / NEXT
        try:
            if newest.exists():
                self._retire(newest)
            os.rename(following, newest)
            older = sorted(self.folder.glob("checkpoint-[0-9]*"), key=lambda path: path.name)
            for path in older[: max(0, len(older) - (self.keep - 1))]:
                shutil.rmtree(path, ignore_errors=True)
        except OSError as error:
            raise StorageError(f"cannot rename checkpoints in '{self.folder}': {error.strerror or error}") from error

    def _retire(self, path: Path) -> None:
        step = self.latest if self.latest is not None else int(read_json(path / STATE)["step"])
        target = self.folder / f"checkpoint-{step:09d}"
        if target.exists():
            shutil.rmtree(target)
        os.rename(path, target)

    def _settle(self, used: Path) -> None:
        """Give the checkpoint that was used its usual name; newer ones, which are damaged, are set aside by name."""
        for path in self._newest_first():
            if path == used:
                break
            aside = self.folder / f"damaged-{path.name}"
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
        if used.name != NEWEST:
            if (self.folder / NEWEST).exists():
                self.latest = None
                self._retire(self.folder / NEWEST)
            os.rename(used, self.folder / NEWEST)


def _named(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, Tensor]]:
    """The optimizer's parameters in its own order, with their names in the module."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [(names[id(p)], p) for group in optimizer.param_groups for p in group["params"]]


def _optimizer_state(module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and plain values of the optimizer's state, each under PARAMETER.KEY."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for name, parameter in _named(module, optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}.{key}"] = value.detach().contiguous()
            else:
                numbers[f"{name}.{key}"] = value
    return tensors, numbers


def _restore_optimizer(
    module: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], numbers: dict[str, Any], path: Path
) -> None:
    values: dict[str, Any] = {k: v for k, v in tensors.items() if not k.startswith(f"{_RANDOM}.")} | numbers
    content = optimizer.state_dict()
    state: dict[int, dict[str, Any]] = {}
    for index, (name, parameter) in enumerate(_named(module, optimizer)):
        for key in [key for key in values if key.rpartition(".")[0] == name]:
            value = values.pop(key)
            if isinstance(value, Tensor):
                if value.dim() and value.shape != parameter.shape:
                    raise CorruptionError(
                        f"'{path / OPTIMIZER}': {key} has shape {tuple(value.shape)}, not {tuple(parameter.shape)}"
                    )
                value = value.clone()  # off the file's map, into aligned memory
            state.setdefault(index, {})[key.rpartition(".")[2]] = value
    if values:
        raise CorruptionError(
            f"'{path / OPTIMIZER}' holds the state of parameters that are not there: {sorted(values)[:3]}"
        )
    optimizer.load_state_dict({**content, "state": state})


def _torch_generators() -> dict[str, Tensor]:
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found |= {f"cuda{index}": state for index, state in enumerate(torch.cuda.get_rng_state_all())}
    if torch.backends.mps.is_available():
        found["mps"] = torch.mps.get_rng_state()
    return found


def _plain_generators() -> dict[str, Any]:
    """Python's and numpy's global generators; the words as hexadecimal text."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = cast(Any, np.random.get_state())  # noqa: NPY002  the global one is what is saved
    return {
        "python": [version, np.array(words, dtype="<u4").tobytes().hex(), gauss],
        "numpy": [name, np.asarray(keys, dtype="<u4").tobytes().hex(), int(position), int(has_gauss), float(cached)],
    }


def _restore_generators(tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    states = {
        name.partition(".")[2]: value.clone() for name, value in tensors.items() if name.startswith(f"{_RANDOM}.")
    }
    torch.set_rng_state(states["cpu"])
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda{index}" in states:
            torch.cuda.set_rng_state(states[f"cuda{index}"], index)
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])
    version, words, gauss = plain["python"]
    random.setstate((version, tuple(int(w) for w in np.frombuffer(bytes.fromhex(words), dtype="<u4")), gauss))
    name, keys, position, has_gauss, cached = plain["numpy"]
    keys = np.frombuffer(bytes.fromhex(keys), dtype="<u4").copy()
    np.random.set_state((name, keys, position, has_gauss, cached))  # noqa: NPY002


def _say(text: str) -> None:
    print(f"orrery: {text}", file=sys.stderr, flush=True)
