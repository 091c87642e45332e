"""Commands as typed: output, JSON, exit codes."""

import json
import subprocess
import sys

import pytest
import torch

import orrery


def run(*arguments, cwd=None, code=0, stdin=None):
    result = subprocess.run(
        [sys.executable, "-m", "orrery", *arguments], capture_output=True, text=True, cwd=cwd, input=stdin, timeout=120, check=False
    )
    assert result.returncode == code, result.stderr
    return result


def test_list_and_show():
    names = {entry["name"] for entry in json.loads(run("list", "--json").stdout)}
    assert set(orrery.list_models()) == names
    assert "transformer" in run("list", "trans*").stdout
    shown = json.loads(run("show", "transformer", "--size", "nano", "--json").stdout)
    assert shown["sizes"][0]["parameters"] == orrery.create_model("transformer", size="nano").num_parameters()
    text = run("show", "gpt2").stdout
    assert "learned positions" in text and "state at" in text and "channel.activation" in text
    pair = json.loads(run("show", "t5", "--size", "nano", "--json").stdout)
    assert {"encoder.mixer.head_dim", "decoder.channel.hidden"} <= {setting["name"] for setting in pair["parts"][0]["settings"]}
    assert pair["sizes"][0]["depth"] == 4  # two layers on each side


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("list", "transfomer"), "'transformer'"),
        (("list", "--kind", "mixr"), "'mixer'"),
        (("show", "mamab2"), "'mamba2'"),
        (("show", "transformer", "--size", "nanno"), "'nano'"),
        (("generate", "nowhere"), "holds no model"),
        (("runs", "show", "x", "--root", "nowhere"), "no run"),
        (("runs", "import", "nowhere"), "no folder"),
        (("new", "mixer", "Bad Name"), "lower-case"),
        (("new", "mixer", "gpt2"), "exists already"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_two(arguments, words, tmp_path):
    result = run(*arguments, cwd=tmp_path, code=2)
    assert words in result.stderr and result.stderr.count("\n") == 1 and "Traceback" not in result.stderr


def test_help_has_examples():
    for command in (["list"], ["show"], ["generate"], ["runs", "list"], ["runs", "import"], ["new", "mixer"], ["doctor"]):
        assert "Example" in run(*command, "--help").stdout
    assert run("--version").stdout.strip() == orrery.__version__


def test_new_mixer_works_from_the_first_minute(tmp_path):
    run("new", "mixer", "my-mean", cwd=tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_mean.py"]
    check = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert check.returncode == 0, check.stdout[-2000:]
    assert "exists already" in run("new", "mixer", "my-mean", cwd=tmp_path, code=2).stderr


def test_generate_reads_a_saved_model(tmp_path):
    from orrery.data.tokenizers import ByteTokenizer

    model = orrery.create_model("transformer", size="nano", seed=0)
    orrery.save(model, tmp_path / "run" / "weights")
    assert "without a tokenizer" in run("generate", "run", "a", cwd=tmp_path, code=2).stderr
    ByteTokenizer().save(tmp_path / "run" / "weights" / "tokenizer")
    said = json.loads(run("generate", "run", "-", "-n", "8", "--seed", "1", "--json", cwd=tmp_path, stdin="abc").stdout)
    loaded = orrery.load(tmp_path / "run" / "weights")
    assert said["prompt"] == "abc" and said["text"] == orrery.generate(loaded, "abc", 8, temperature=0.8, seed=1)


def test_doctor_tells_the_machine():
    facts = json.loads(run("doctor", "--json").stdout)
    assert facts["packages"]["torch"] == torch.__version__ and facts["cores"]
