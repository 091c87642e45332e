"""Encoders as ONNX: the runtime's answers beside the model's, and what is refused."""

from __future__ import annotations

import pytest
import torch

import orrery
from orrery.core.errors import ConfigError
from orrery.models.onnx import to_onnx

runtime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")

SMALL = {"width": 32, "depth": 2, "vocab_size": 100, "seed": 1}


CASES = {  # learned positions and types; angles and windows shorter than the text; a bias by distance; position vectors
    "bert": ("bert", {"head": "classification", "labels": 3}),
    "modernbert": ("modernbert", {"head": "tagging", "labels": 3, "local.window": 4, "head_dim": 8}),
    "t5": ("t5", {"head_dim": 8}),
    "deberta": ("deberta", {"head": "masked-lm", "head_dim": 8}),
    "bart": ("bart", {"head": "classification", "labels": 3, "head_dim": 8, "start": 4, "stop": 9}),  # both stacks
}


@pytest.mark.parametrize("case", CASES)
def test_a_graph_answers_as_the_model_at_any_shape(tmp_path, case):
    name, settings = CASES[case]
    model = orrery.create_model(name, **SMALL, **settings)
    model = (model.encoder if name == "t5" else model).train()
    path = orrery.to_onnx(model, tmp_path / "made" / f"{name}.onnx")
    assert model.training and path.is_file()
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    typed = case == "bert"
    assert [held.name for held in session.get_inputs()] == ["tokens", "types"][: 1 + typed]
    model.eval()
    for shape in ((1, 1), (4, 5), (2, 64)):
        tokens = torch.randint(0, 100, shape)
        tokens[:, shape[1] // 2] = 9
        given = {"tokens": tokens, **({"types": torch.randint(0, 2, shape)} if typed else {})}
        found = session.run(None, {key: value.numpy() for key, value in given.items()})[0]
        with torch.no_grad():
            out = model(given["tokens"], types=given.get("types"))
        expected = out.hidden if out.logits is None else out.logits
        assert torch.from_numpy(found).sub(expected).abs().max() < 1e-4


def test_what_cannot_be_written_is_refused_with_the_reason(tmp_path):
    recurrent = orrery.create_model(
        "gru", frame="encoder", head="classification", labels=2, width=32, depth=1, vocab_size=100
    )
    with pytest.raises(ConfigError, match="'gru' cannot be written as ONNX: "):
        to_onnx(recurrent, tmp_path / "gru.onnx")
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    with pytest.raises(ConfigError, match="is no encoder"):
        to_onnx(orrery.create_model("transformer", width=32, depth=1, vocab_size=100), tmp_path / "lm.onnx")
