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


@pytest.mark.parametrize(("head", "settings"), [("classification", {"labels": 3})])
def test_a_bert_answers_the_same_at_any_shape(tmp_path, head, settings):
    model = orrery.create_model("bert", head=head, **SMALL, **settings).train()
    path = to_onnx(model, tmp_path / "made" / "bert.onnx")
    assert model.training and path.is_file()
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [held.name for held in session.get_inputs()] == ["tokens", "types"]
    model.eval()
    for shape in ((1, 1), (4, 5), (2, 64)):
        tokens, types = torch.randint(0, 100, shape), torch.randint(0, 2, shape)
        found = session.run(None, {"tokens": tokens.numpy(), "types": types.numpy()})[0]
        with torch.no_grad():
            expected = model(tokens, types=types).logits
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
