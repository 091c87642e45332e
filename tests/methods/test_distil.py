"""A student that begins as some of its teacher's layers."""

import pytest
import torch

import orrery
from orrery.core.errors import ConfigError
from orrery.methods.distil import distil_start, spread
from orrery.testing.subject import perturb

TOKENS = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(0))


def teacher(name="bert", **settings):
    model = orrery.create_model(name, width=32, depth=5, vocab_size=61, seed=1, **settings).eval()
    perturb(model, 1)
    return model


def test_the_published_layers():
    assert spread(12, 6) == [0, 2, 4, 7, 9, 11] and spread(6, 3) == [0, 2, 5] and spread(3, 1) == [0]


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "electra"])
def test_a_student_is_its_teachers_layers(name):
    model = teacher(name, head="masked-lm")
    student = distil_start(model, layers=(0, 2, 3))
    assert student.config.architecture == {"bert": "distilbert"}.get(name, name) and student.config.depth == 3
    with torch.no_grad():
        h = model.hidden_states(TOKENS)[0]
        assert torch.allclose(student.hidden_states(TOKENS)[0], h, atol=1e-6)
        ctx = orrery.nn.contract.Context(time=orrery.nn.timeline.plan(None, None, 2, 9, h.device)[0], shared={})
        for layer in (0, 2, 3):
            h, _ = model.run(h, layer, layer + 1, None, ctx)
        h = h if model.norm is None else model.norm(h)
        out = student(TOKENS)
        assert torch.allclose(out.hidden, h, atol=1e-5) and torch.allclose(out.logits, model.head(h), atol=1e-5)
        student.embed.weight.zero_()
    assert model.embed.weight.any() and len(distil_start(model).blocks) == 2


def test_another_head_and_mistakes():
    student = distil_start(teacher(), head="classification", labels=4)
    assert student(TOKENS).logits.shape == (2, 4) and student.config.depth == 2
    for layers in ((0, 5), (2, 1), (1, 1), ()):
        with pytest.raises(ConfigError, match="ascending"):
            distil_start(teacher(), layers=layers)
    with pytest.raises(ConfigError, match="is no encoder"):
        distil_start(orrery.create_model("gpt2", width=32, depth=1))
