"""The protocol's parts: curves, folders, budgets, sentences; learning rates; costs; floors; capabilities."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from orrery.compare import capability, costs, energy, floors, instruments, machine, protocol, rates
from orrery.compare.candidates import candidates, describe
from orrery.compare.protocol import Settings
from orrery.compare.rates import Sweep, next_rates
from orrery.compare.result import RunRow
from orrery.core.errors import ConfigError, CorruptionError, OrreryError
from orrery.data import MemoryCorpus, prepare, validation_windows
from orrery.models.build import create_model
from orrery.models.wrap import wrap


def steps(count: int, every: int = 1, size: int = 10) -> list[dict]:
    return [{"step": s, "tokens": s * size, "loss": float(s)} for s in range(every, count + 1, every)]


def test_a_curve_averages_bins_of_tokens():
    bins = protocol.Binner(64, 1.0)
    points = [point for event in steps(64) if (point := bins.add(event))]
    assert len(points) == 32
    assert points[0] == pytest.approx((10.0, 1.5 / math.log(2))) and points[-1] == pytest.approx((630.0, 63.5 / math.log(2)))
    short = protocol.Binner(3, 0.5)
    assert [short.add(event) for event in steps(3)][2] == pytest.approx((25.0, 3 / math.log(2) / 0.5))


def test_a_curve_of_sparse_logs_and_of_a_last_short_bin_loses_no_token():
    for planned, every in ((70, 1), (1000, 7), (33, 2), (5000, 5)):
        events = steps(planned, every)
        if events[-1]["step"] != planned:
            events.append({"step": planned, "tokens": planned * 10, "loss": 1.0})
        bins = protocol.Binner(planned, 1.0)
        points = [point for event in events if (point := bins.add(event))]
        assert len(points) <= protocol.POINTS + 1
        widths, left = [], 0.0
        for x, _ in points:
            widths.append(2 * (x - left))
            left += widths[-1]
        assert left == pytest.approx(planned * 10)


def test_a_loss_that_is_not_finite_makes_no_point():
    bins = protocol.Binner(4, 1.0)
    assert bins.add({"step": 1, "tokens": 10, "loss": None}) is None
    row = RunRow("a", 1, "failed")
    data = protocol.run_data(row, [{"step": 1, "tokens": 10, "loss": None}], {"error": "x"}, 4, 1.0)
    assert data.points == [] and row.bits_per_byte is None and not data.finished
    hollow = protocol.run_data(RunRow("a", 1, "done"), [], {"steps": 4}, 4, 1.0)
    assert hollow.row.status == "failed" and "without a validation" in hollow.row.error


def test_a_run_s_folder_is_named_by_what_decides_its_outcome():
    (candidate,) = candidates(["gpt2"])
    settings = Settings()
    config = protocol.train_config(settings, candidate, 1e-3, 10, 1, threads=1)
    name = protocol.run_folder(config, "data", {"width": 3}, 1)
    assert name.startswith("gpt2-s1-")
    assert name == protocol.run_folder(config.replace(**{"system.threads": 2, "checkpoint.keep": 3}), "data", {"width": 3}, 1)
    others = [
        protocol.run_folder(config, "other data", {"width": 3}, 1),
        protocol.run_folder(config, "data", {"width": 4}, 1),
        protocol.run_folder(config, "data", {"width": 3}, 2),
        protocol.run_folder(config.replace(**{"optim.lr": 2e-3}), "data", {"width": 3}, 1),
        protocol.run_folder(config.replace(budget="11steps"), "data", {"width": 3}, 1),
    ]
    assert len({name, *others}) == 6 and others[2].startswith("gpt2-s1-again-")


def test_caveats_and_commands():
    assert "early in training (2.0 tokens per parameter)" in protocol.caveat(600_000, 300_000, 0.1)
    assert protocol.caveat(6_000_000, 300_000, 0.5) == "one size, one corpus, one budget (20 tokens per parameter)"
    assert "read 2.5 times" in protocol.caveat(6_000_000, 300_000, 2.5)
    settings = Settings(budget="2Mtok", seeds=(1, 2), corpus="my text", size="micro")
    line = protocol.command_line(settings, candidates(["gpt2", "transformer*2 + gpt2"]))
    assert line == "orrery compare gpt2 'transformer*2 + gpt2' --corpus 'my text' --size micro --budget 2Mtok --seeds 2"
    assert protocol.command_line(Settings(seeds=(3, 5)), candidates(["gpt2"])).endswith("--seeds 3,5")


def test_the_grid_of_a_sweep_grows_until_the_best_is_inside():
    assert next_rates({}, 2e-3) == [1e-3, 2e-3, 4e-3]
    assert next_rates({1e-3: 3.0, 2e-3: 2.0, 4e-3: 2.5}) == []
    assert next_rates({1e-3: 3.0, 2e-3: 2.0, 4e-3: 1.5}) == [8e-3]
    assert next_rates({1e-3: 1.0, 2e-3: 2.0, 4e-3: None}) == [5e-4]
    assert next_rates({1e-3: 1.0, 2e-3: None, 4e-3: None}) == [5e-4]
    assert next_rates({1e-3: None, 2e-3: None, 4e-3: None}) == [5e-4]
    assert next_rates({2e-3 * 2**k: 1.0 / (k + 1) for k in range(9)}) == []  # enough is enough


def test_recorded_rates_and_the_rules_beyond_them(tmp_path):
    file = tmp_path / "rates.json"
    for name, size, best in (("transformer", "nano", 4e-3), ("transformer", "micro", 2e-3), ("gpt2", "nano", 1e-3)):
        tried = {best / 2: 2.0, best: 1.0, best * 2: None}
        rates.record(Sweep(name, size, tried, width=128, date="2026-01-01"), {"budget": "x"}, file)
    assert json.loads(file.read_text())["protocol"] == {"nano": {"budget": "x"}, "micro": {"budget": "x"}}
    exact = rates.recorded("transformer", "nano", path=file)
    assert (exact.value, exact.source) == (4e-3, "recorded sweep") and "2026-01-01" in exact.note
    larger = rates.recorded("transformer", "tiny", width=256, path=file)
    assert (larger.value, larger.source) == (1e-3, "width rule") and "128/256" in larger.note
    hybrid = rates.recorded("transformer*2 + gpt2", "nano", path=file)
    assert (hybrid.value, hybrid.source) == (1e-3, "nearest recorded architecture") and "smallest" in hybrid.note
    settings = rates.recorded("transformer(canon=abcd)", "nano", path=file)
    assert settings.value == 4e-3 and "settings differ" in settings.note
    assert rates.recorded("", None, path=file).source == "untuned default"
    rates.table.cache_clear()
    assert rates.recorded("parallel", "nano", path=file).source == "untuned default"
    with pytest.raises(OrreryError, match="no run of the sweep"):
        rates.record(Sweep("gpt2", "nano", {1e-3: None}), {}, file)
    file.write_text("[]")
    rates.table.cache_clear()
    with pytest.raises(CorruptionError, match="table of learning rates"):
        rates.recorded("gpt2", "nano", path=file)


def test_the_committed_table_is_sound():
    assert rates.recorded("mamba2*3+attention", "nano") == rates.recorded("mamba2*3 + attention", "nano")
    assert rates.recorded("mamba2|attention", "nano").source == "recorded sweep"
    found = rates.table()["architectures"]
    for name, sizes in found.items():
        for size, entry in sizes.items():
            tried = {float(rate): value for rate, value in entry["tried"].items()}
            inside = min(tried) < entry["lr"] < max(tried)
            assert inside or len(tried) >= rates.LARGEST_GRID, f"{name} at {size}: the rate lies at the edge of its grid"
            assert tried[entry["lr"]] == min(value for value in tried.values() if value is not None), (name, size)


@pytest.fixture(scope="module")
def data():
    texts = {f"{n}.txt": "".join(f"{n} plus {i} is {n + i}\n" for i in range(30)) for n in range(60)}
    return prepare(MemoryCorpus(texts), "bytes", quiet=True)


def test_floors_count_what_a_run_sees(data):
    windows = validation_windows(data.validation, 32, 8, None)
    found = floors.floors(data, windows, 4096, batch=4, length=32, seed=1)
    assert [floor.label for floor in found] == ["bigram", "Kneser-Ney 5-gram"]
    bigram, ngram = (floor.bits_per_byte for floor in found)
    assert 0 < ngram < bigram < 8 and "4,096 tokens" in found[1].detail
    curve = found[1].curve
    assert curve.split == protocol.STREAM and curve.x == sorted(curve.x) and 0.9 < curve.x[-1] / 4096 <= 0.95
    assert 8 > curve.mean[0] > curve.mean[-1] > 0
    whole = floors.floors(data, windows, 10**9, batch=4, length=32, seed=1)
    assert f"of {10**9:,}" in whole[0].detail and 0.8 < whole[0].curve.x[-1] / len(data.train) <= 0.95  # each text once


def test_a_floor_s_score_is_the_sum_over_windows(data):
    from orrery.ngram.counts import KneserNey

    windows = validation_windows(data.validation, 32, 8, 500)
    stream = np.concatenate([batch["tokens"].reshape(-1) for batch in (windows.arrays(i) for i in range(len(windows)))])
    counts = KneserNey.fit(stream, 257, 2, None)
    total = 0.0
    for batch in (windows.arrays(i) for i in range(len(windows))):
        for tokens, segments in zip(batch["tokens"], batch["segments"], strict=True):
            for place in range(1, int((segments >= 0).sum())):
                total -= math.log2(counts.distribution(tokens[place - 1 : place])[tokens[place]])
    assert floors.score(counts, windows) == pytest.approx(total / windows.bytes)


SMALL = costs.CostPlan(batch=2, length=16, lengths=(8, 16), state_lengths=(8, 64), new_tokens=6, seconds=0.02)


def test_costs_of_a_small_model():
    found = costs.measure(lambda: create_model("transformer", width=16, depth=1), SMALL)
    assert found.error == "" and found.parameters < found.parameters_total
    for quantity in (found.train_speed, found.train_memory, found.train_flops, found.train_flops_counted, found.train_energy):
        assert quantity.value is not None and quantity.value >= 0 and quantity.unit and quantity.how
    assert [point.x for point in found.prefill.points] == [8.0, 16.0] and all(point.y > 0 for point in found.decode.points)
    assert [point.y for point in found.state.points] == [create_model("transformer", width=16, depth=1).state_bytes(n) for n in (8, 64)]
    assert 0 < found.matmul_fraction.value < 1 and "GFLOP/s" in found.matmul_fraction.note
    (candidate,) = candidates(["transformer"])
    row = describe(candidate, None, 257, 16, {"width": 16, "depth": 1})
    assert row.costs.train_flops.value == found.train_flops.value


def test_a_cost_that_fails_leaves_the_others():
    found = costs.measure(lambda: create_model("gpt2", width=16, depth=1, max_positions=16), SMALL.replace(lengths=(8, 32)))
    assert [point.y is None for point in found.prefill.points] == [False, True] and "32" in found.prefill.note
    assert found.train_speed.value > 0

    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = torch.nn.Embedding(257, 4), torch.nn.Linear(4, 257)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            if len(tokens) == 1:
                raise RuntimeError("one row is beneath me")
            return self.head(self.embed(tokens))

    odd = costs.measure(lambda: wrap(Odd(), 257), SMALL)
    assert odd.train_speed.value > 0 and odd.state is not None and "prefill: RuntimeError: one row" in odd.error


def test_a_point_that_would_take_too_long_is_left_out(monkeypatch):
    monkeypatch.setattr(costs, "LONGEST_WAIT", 0.0)
    found = costs.measure(lambda: create_model("gpt2", width=16, depth=1), SMALL)
    assert found.prefill.points[0].y > 0 and found.prefill.points[1].y is None and "left out" in found.prefill.note


def test_joules_are_measured_where_the_machine_tells(tmp_path):
    for name, now in (("intel-rapl:0", 5_000_000), ("intel-rapl:0:1", 77), ("intel-rapl:1", 90_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(str(now))
        (tmp_path / name / "max_energy_range_uj").write_text("100000000")
    assert len(energy.counters(tmp_path)) == 2
    stop = energy.meter(tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("8000000")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("4000000")  # the counter has wrapped
    found = stop()
    assert found.how == "measured" and found.value == pytest.approx(3.0 + 14.0)
    stop = energy.meter(tmp_path / "none")
    sum(range(1000))  # some microseconds, which a clock that ticks every 10 ms would not see
    guessed = stop()
    assert guessed.how == "estimated" and 0 < guessed.value < 1 and "10 W per core" in guessed.note


def test_instruments():
    calls = []
    timing = instruments.timed(lambda: calls.append(1), 0.0, least=3, warm=2)
    assert len(calls) == 5 and timing.count == 3 and timing.median >= 0
    assert 1e8 < instruments.matmul_rate(0.05) < 1e15
    before = instruments.peak_memory()
    held = np.ones(30_000_000 // 8)
    assert instruments.peak_memory() >= before > 10_000_000 and held.sum() > 0


SETTING = capability.Setting("mqar(pairs=1, length=4, vocab=8)", "t", "q", steps=60, batch=64, every=20, tests=2)


def test_capability_training_is_deterministic_and_stops_when_solved():
    results = [capability.train(capability.build("transformer", SETTING, 1), SETTING, 1e-2, 1) for _ in range(2)]
    assert results[0]["curve"] == results[1]["curve"]
    told: list = []
    easy = capability.Setting(**{**SETTING.to_dict(), "solved_at": 0.0})
    found = capability.train(capability.build("transformer", easy, 1), easy, 1e-2, 1, lambda *point: told.append(point))
    assert found["steps"] == 20 and told == [(20, found["accuracy"])] and found["solved"] == 20
    row = capability.row("a", {1: found, 2: {**results[0], "solved": None}}, easy)
    assert row.curve.values["1"] == [found["curve"][0][1], *[found["accuracy"]] * 3] and row.steps_to_solve is None
    assert row.mean == pytest.approx((found["accuracy"] + results[0]["accuracy"]) / 2) and row.curve.y_unit == "accuracy"
    assert capability.row("b", {}, easy).mean is None
    assert capability.rate("no-such-model", SETTING) == capability.RATE


def test_capability_tables_take_chance_and_optimum_from_the_task():
    for setting in capability.SETTINGS:
        table = capability.table(setting, [1])
        assert 0 < table.chance < table.optimum == 1.0 and table.name in setting.task and table.question.endswith("?")


def test_how_many_processes(monkeypatch, tmp_path: Path):
    (gpt2,) = candidates(["gpt2"])
    job = {"kind": "speed", "batch": 2, "length": 16}
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(machine, "_together", lambda count, threads, job: {2: 16.0, 1: 10.0}[count])
    found = machine.choose(6, None, job, gpt2)
    assert (found["processes"], found["threads"]) == (2, 1) and found["measured"] == {"1 x 2": 10.0, "2 x 1": 16.0}
    monkeypatch.setattr(machine, "_together", lambda count, threads, job: 0.0)
    assert machine.choose(6, None, job, gpt2)["processes"] == 1
    assert machine.choose(1, None, job, gpt2)["why"] == "one run"
    assert machine.choose(6, 3, job, gpt2) == {"processes": 3, "threads": 1, "why": "as asked", "measured": {}}
    monkeypatch.setattr(machine, "cores", lambda: 1)
    assert machine.choose(6, None, job, gpt2)["why"] == "one core"


def test_reference_results():
    from orrery.compare import reference

    for name in reference.names():
        assert reference.reference(name).kind == "reference"
    with pytest.raises(ConfigError, match="no reference result"):
        reference.reference("no-such")
    assert (reference.nearest("nano", "stdlib") is None) == (reference.names() == [])


@pytest.mark.parametrize("wrong", [{"sample": "20k"}, {"length": 0}, {"batch": 1.5}, {"margin": "x"}, {"noise": "yes"}, {"tokenizer": 4}])
def test_settings_that_are_no_numbers_are_refused_at_once(wrong):
    with pytest.raises(ConfigError, match=f"^{next(iter(wrong))} is"):
        Settings(**wrong)
