"""`orrery export`: a file that the runtime reads, a folder in 8 bits, and one sentence where there is none."""

from __future__ import annotations

import sys

import pytest
import torch

import orrery
from orrery.cli import main
from orrery.data.records import Row, Table
from orrery.methods.finetune import FinetuneConfig, finetune
from orrery.methods.fitted import load_fitted
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
        ((tmp_path / "lm", "--onnx", tmp_path / "lm.onnx"), "DecoderLM is no encoder; ONNX export takes encoders, and encoder-decoders with a head"),
        ((tmp_path / "none", "--onnx", tmp_path / "a.onnx"), "is no folder"),
        ((tmp_path / "lm", "--onnx", tmp_path), "is a folder; name a file, such as"),
    ):
        code, out, err = run(monkeypatch, capsys, *arguments)
        assert (code, out) == (2, "") and words in err and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lm"]


def test_a_fitted_pnlp_mixer_becomes_a_quarter_and_answers_alike(tmp_path, monkeypatch, capsys):
    rows = [Row(f"t, line {n}", {"text": f"the {'cat' if n % 2 else 'dog'} {n}", "label": "ab"[n % 2]}) for n in range(40)]
    settings = {"width": 16, "hidden": 16, "depth": 1, "words": 8}
    task = FinetuneConfig(epochs=1, lr=1e-2)
    finetune("pnlp-mixer", Table("t", ("text", "label"), rows), tmp_path / "run", task, settings=settings, quiet=True)
    code, out, err = run(monkeypatch, capsys, tmp_path / "run", "--quantise", tmp_path / "small")
    assert (code, err) == (0, "") and "before" in out
    sizes = [(tmp_path / name / "weights" / "model.safetensors").stat().st_size for name in ("run", "small")]
    assert sizes[1] < 0.4 * sizes[0]
    before, after = (load_fitted(tmp_path / name).predict(["a cat", "a dog"]) for name in ("run", "small"))
    for one, other in zip(before, after, strict=True):
        assert one["probabilities"]["a"] == pytest.approx(other["probabilities"]["a"], abs=0.02) and one != other
    assert "**Matrices in 8 bits**" in (tmp_path / "small" / "MODEL_CARD.md").read_text()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    for where, words in (("run", "is the model itself"), ("other", "holds something else than a fine-tuned model")):
        code, out, err = run(monkeypatch, capsys, tmp_path / "run", "--quantise", tmp_path / where)
        assert (code, out) == (2, "") and words in err and err.count("\n") == 1
    code, out, err = run(monkeypatch, capsys, tmp_path / "run")
    assert (code, out) == (2, "") and "--onnx FILE, or --quantise FOLDER" in err
