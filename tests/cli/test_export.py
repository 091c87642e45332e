"""`orrery export`: a file that the runtime reads, and one sentence where there is none."""

from __future__ import annotations

import sys

import pytest
import torch

import orrery
from orrery.cli import main
from orrery.models.storage import save

SMALL = {"width": 16, "depth": 1, "vocab_size": 30, "seed": 1, "head": "classification", "labels": 3}


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["orrery", "export", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return (ended.value.code or 0, *capsys.readouterr())


def test_a_folder_becomes_a_file_with_equal_answers(tmp_path, monkeypatch, capsys):
    runtime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    model = orrery.create_model("bert", **SMALL, **{"mixer.head_dim": 8}).eval()
    save(model, tmp_path / "run" / "weights")
    file = tmp_path / "made" / "bert.onnx"
    code, out, err = run(monkeypatch, capsys, tmp_path / "run", "--onnx", file)
    assert (code, err) == (0, "") and out.startswith(f"{file}  ") and out.endswith(" kB\n")
    tokens = torch.randint(0, 30, (2, 5), generator=torch.Generator().manual_seed(0))
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run(None, {"tokens": tokens.numpy(), "types": torch.zeros_like(tokens).numpy()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(tokens).logits, rtol=1e-4, atol=1e-4)


def test_what_is_no_encoder_or_no_file_is_one_sentence(tmp_path, monkeypatch, capsys):
    save(orrery.create_model("transformer", width=32, depth=1, vocab_size=30, seed=1), tmp_path / "lm")
    for arguments, words in (
        ((tmp_path / "lm", "--onnx", tmp_path / "lm.onnx"), "DecoderLM is no encoder; ONNX export takes encoders and their heads"),
        ((tmp_path / "none", "--onnx", tmp_path / "a.onnx"), "is no folder"),
        ((tmp_path / "lm", "--onnx", tmp_path), "is a folder; name a file, such as"),
    ):
        code, out, err = run(monkeypatch, capsys, *arguments)
        assert (code, out) == (2, "") and words in err and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lm"]
