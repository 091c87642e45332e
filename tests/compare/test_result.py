"""The result schema: what is written is what is read, and damage is named."""

from __future__ import annotations

import json

import pytest

from orrery.compare import result as schema
from orrery.core.errors import CorruptionError


def full_result() -> schema.ComparisonResult:
    """A result in which every dataclass of the schema occurs."""
    curve = schema.Curve(x=[100.0, 200.0], values={"1": [3.0, 2.5], "2": [3.1, None]}, mean=[3.05, 2.5], low=[3.0, 2.5], high=[3.1, 2.5])
    costs = schema.Costs(
        parameters=300_000,
        train_speed=schema.Quantity(2000.0, "tokens/s"),
        prefill=schema.Series("context length in tokens", "tokens/s", points=[schema.Point(128.0, 9000.0), schema.Point(256.0, None)]),
        train_energy=schema.Quantity(None, "J/Mtok", "estimated", "no meter"),
    )
    row = schema.ArchitectureRow("lstm", "lstm", learning_rate=schema.LearningRate(3e-3, "recorded sweep"), curve=curve, costs=costs)
    row.quality = schema.Quality(seeds={"1": 2.5}, mean=2.5)
    task = schema.CapabilityTask("mqar", "recall", "?", rows=[schema.CapabilityRow("lstm", seeds={"1": 0.2}, curve=curve)])
    return schema.ComparisonResult(
        title="t",
        command="orrery compare",
        protocol=schema.Protocol(seeds=[1, 2], steps={"lstm": 10}),
        architectures=[row, schema.ArchitectureRow("none", "none")],
        runs=[schema.RunRow("lstm", 1, "done", 2.5), schema.RunRow("lstm", 2, "oom", error="killed")],
        floors=[schema.Floor("bigram", 3.9, curve=curve)],
        capabilities=[task],
        contrasts=[schema.Contrast("lstm", "none", seeds=[1], deltas=[-0.1])],
        noise_floor=schema.NoiseFloor("lstm", deltas=[0.01]),
        recommendation=schema.Recommendation("Take it.", excluded=[schema.Exclusion("none", "failed", "no runs")]),
        notes=["a note"],
    )


def test_save_and_load_return_the_same_result(tmp_path):
    result = full_result()
    path = result.save(tmp_path / "new" / "folder")
    again = schema.load(tmp_path / "new" / "folder")
    assert again == result and schema.load(path) == result
    assert [row.label for row in again.ranked()] == ["lstm", "none"]
    assert again.row("none").quality.mean is None
    with pytest.raises(KeyError):
        again.row("gru")


def test_numbers_that_are_not_finite_become_null(tmp_path):
    result = full_result()
    result.architectures[0].quality.mean = float("nan")
    result.architectures[0].curve.values["1"] = [float("inf"), 1.0]
    result.save(tmp_path)
    row = schema.load(tmp_path).architectures[0]
    assert row.quality.mean is None and row.curve.values["1"] == [None, 1.0]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), 2, "format 1"),
        (("surprise",), 1, "unknown fields: surprise"),
        (("runs",), {}, "should be a list"),
        (("runs", 0, "seed"), "one", "runs\\[0\\]: seed' should be int"),
        (("runs", 0, "seed"), True, "should be int"),
        (("architectures", 0, "curve", "values"), [1], "should be a mapping"),
        (("noise_floor",), [], "should be a mapping"),
        (("contrasts", 0), {"first": "a"}, "incomplete"),
    ],
)
def test_damage_is_named(tmp_path, path, value, message):
    result = full_result()
    file = result.save(tmp_path)
    document = json.loads(file.read_text())
    here = document
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    file.write_text(json.dumps(document))
    with pytest.raises(CorruptionError, match=message):
        schema.load(tmp_path)
