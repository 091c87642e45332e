"""`orrery train --set data.stream=true` and `orrery eval` with the state carried, as typed."""

import json

import pytest
from typer.testing import CliRunner

from orrery.cli.app import app
from orrery.core.errors import ConfigError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli")
    (root / "text").mkdir()
    for number in range(8):
        (root / "text" / f"{number}.txt").write_text(" ".join(["alpha", "beta", "gamma"][number % 3 :] * (20 + 40 * number)))
    shape = ["model.size=None", "model.width=32", "model.depth=1", "model.head_dim=8", "model.state=8"]
    settings = [*shape, "data.length=16", "data.batch=4", "data.stream=true", "data.span=8"]
    words = [part for setting in settings for part in ("--set", setting)]
    result = typed("train", "mamba2", "--corpus", root / "text", "--budget", "4steps", "--out", root / "run", "--json", *words)
    return root, json.loads(result)


def typed(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_train_streams_and_eval_carries(trained):
    root, result = trained
    assert result["validation"]["rule"] == "carried state"
    words = ("eval", root / "run", "--corpus", root / "text", "--length", 16)
    carried, windows = (json.loads(typed(*words, *more, "--json")) for more in (["--stream"], []))
    assert carried["bits_per_byte"] == pytest.approx(result["bits_per_byte"], rel=1e-5)
    assert windows["bits_per_byte"] != carried["bits_per_byte"] and "rule" not in windows
    assert "state carried" in typed(*words, "--policy", "slide:32")


def test_lengths_and_state(trained):
    root, _ = trained
    words = ("eval", root / "run", "--corpus", root / "text", "--length", 16, "--longest", 128)
    found = json.loads(typed(*words, "--lengths", "--json", "--decay", 1.2))
    assert [(row["from"], row["to"]) for row in found["rows"]] == [(1, 64), (65, 128)]
    table = typed(*words, "--lengths", "--policy", "normalise:1.5x")
    assert "65 to 128" in table and "8 x" in table and "within" not in table
    both = json.loads(typed(*words, "--lengths", "--json", "--policy", "slide:16", "--paired"))
    for row, plain, gap in zip(both["rows"], both["without"]["rows"], both["difference"], strict=True):
        assert gap["difference"] == pytest.approx(row["bits_per_byte"] - plain["bits_per_byte"], abs=1e-9)
    assert "paired" in typed(*words, "--lengths", "--decay", 1.2, "--paired")
    assert {r["field"] for r in json.loads(typed(*words, "--state", "--json"))} == {"conv", "ssm"}
    assert "retention" in typed(*words, "--state", "--insertion", 0.9)
    with pytest.raises(ConfigError, match="unknown policy 'slid'"):
        typed(*words, "--policy", "slid:3")


def test_positions_are_scaled_when_a_model_is_read(tmp_path):
    """The trained length is the run's; with --paired the model as it was stands beside."""
    (tmp_path / "text").mkdir()
    for number in range(8):
        (tmp_path / "text" / f"{number}.txt").write_text(" ".join(["alpha", "beta", "gamma"][number % 3 :] * 40))
    shape = ["model.size=None", "model.width=32", "model.depth=1", "model.head_dim=8", "data.length=16", "data.batch=4"]
    settings = [part for setting in shape for part in ("--set", setting)]
    typed("train", "transformer", "--corpus", tmp_path / "text", "--budget", "2steps", "--out", tmp_path / "run", "--json", *settings)
    words = ("eval", tmp_path / "run", "--corpus", tmp_path / "text", "--lengths", "--length", 128, "--longest", 128, "--json")
    plain = json.loads(typed(*words))["rows"]
    found = json.loads(typed(*words, "--rope", "yarn(factor=8)", "--paired"))
    assert [row["bits_per_byte"] for row in found["without"]["rows"]] == [row["bits_per_byte"] for row in plain]
    assert all(row["difference"] != 0 for row in found["difference"])
    named = json.loads(typed(*words, "--rope", "yarn(factor=8, original=16)"))
    assert named["rows"] == found["rows"]
    assert json.loads(typed("generate", tmp_path / "run", "alpha", "--rope", "dynamic(factor=4)", "-n", 8, "--json"))["text"]
    with pytest.raises(ConfigError, match="unknown scaling of positions 'yran'"):
        typed(*words, "--rope", "yran(factor=8)")
