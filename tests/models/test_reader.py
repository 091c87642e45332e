"""Reading with weights laid out once: one short text, many texts, weights that change, threads, forms that are missing."""

import copy
import multiprocessing
import os
import sys
import threading

import pytest
import torch

import orrery
from orrery.core.errors import ConfigError
from orrery.models.encode import encode
from orrery.nn.short_text import MOST_TOKENS
from orrery.ops.backend import use_backend
from orrery.ops.fused.packed_linear import available

pytestmark = pytest.mark.skipif(not available(), reason="torch was built without oneDNN")

SMALL = {"width": 32, "depth": 4, "vocab_size": 50, "seed": 1, "head_dim": 8}
CASES = {  # norms behind parts; before them, with rotation and a window; with one bias for all layers; grouped and half rotated
    "bert": ("bert", {}),
    "modernbert": ("modernbert", {"local.window": 5}),
    "t5": ("t5", {"rope": 0.0}),
    "grouped": ("transformer", {"frame": "encoder", "kv_heads": 2, "rope": 0.5}),
}


def built(case):
    name, settings = CASES[case]
    model = orrery.create_model(name, **{**SMALL, **settings})
    model = model.encoder if name == "t5" else model
    model.head = None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def plain(model, text):
    with torch.no_grad():
        return model(text[None]).hidden.mean(1)


def texts(*lengths):
    return [torch.randint(0, 50, (length,), generator=torch.Generator().manual_seed(length)) for length in lengths]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_one_text_of_any_length_is_read_as_by_the_model(case, backend):
    model = built(case)
    with use_backend(backend):
        for text in texts(1, 2, 9, MOST_TOKENS, MOST_TOKENS + 1, 9):
            torch.testing.assert_close(encode(model, [text]), plain(model, text), atol=2e-5, rtol=1e-4)
    assert model._reader.short is not None, "the short form was not there to be tried"


def test_an_answer_is_not_overwritten_by_the_next():
    model = built("bert")
    model.head = None
    with torch.no_grad():
        model.prepare = True
        first, second = (model(text[None]).hidden for text in texts(7, 7 + 1))
        kept = first.clone()
        third = model(texts(7)[0][None]).hidden
    assert torch.equal(first, kept) and torch.equal(third, kept) and second.shape[1] == 8


def test_changed_weights_are_seen():
    model, (text,) = built("modernbert"), texts(9)
    before = encode(model, [text])
    with torch.no_grad():
        model.blocks[1].mixer.out.weight.mul_(3.0)
    after = encode(model, [text])
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, plain(model, text), atol=2e-5, rtol=1e-4)


class Trebled(torch.nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


class Negated(torch.nn.Module):
    def forward(self, weight):
        return -weight


def hooked(model):
    model.blocks[0].mixer.register_forward_hook(lambda module, given, found: (0.5 * found[0], *found[1:]))


def adapted(model):
    own = model.blocks[0].channel.out
    model.blocks[0].channel.out = Trebled(own.in_features, own.out_features)
    model.blocks[0].channel.out.load_state_dict(own.state_dict())


def parametrised(model):
    torch.nn.utils.parametrize.register_parametrization(model.blocks[0].channel.out, "weight", Negated())


def set_anew(model):
    model.blocks[0].mixer_norm.eps = 0.5


@pytest.mark.parametrize("change", [hooked, adapted, parametrised, set_anew])
@pytest.mark.parametrize("copied", [False, True])
def test_changed_parts_and_settings_and_hooks_are_seen(change, copied):
    model, (text,) = built("bert"), texts(9)
    before = encode(model, [text])
    if copied:
        model = copy.deepcopy(model)
        assert torch.equal(encode(model, [text]), before)
    change(model)
    after = encode(model, [text])
    assert (after - before).abs().max() > 1e-4
    torch.testing.assert_close(after, plain(model, text), atol=2e-5, rtol=1e-4)


def test_several_threads_read_at_once():
    model, given = built("bert"), texts(3, 8, 21, 40)
    expected = [plain(model, text) for text in given]
    wrong = []

    def read(turn):
        for k in range(40):
            at = (k + turn) % len(given)
            if (encode(model, [given[at]]) - expected[at]).abs().max() > 1e-4:
                wrong.append(at)

    threads = [threading.Thread(target=read, args=(turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_reads_with_threads_of_its_own():
    model, (text,) = built("bert"), texts(90)
    expected = encode(model, [text])
    child = multiprocessing.get_context("fork").Process(target=read_in_child, args=(model, text, expected))
    child.start()
    child.join(60)
    stuck = child.is_alive()
    child.kill()
    assert not stuck and child.exitcode == 0


def read_in_child(model, text, expected):
    os._exit(0 if (encode(model, [text]) - expected).abs().max() < 1e-5 else 1)


@pytest.mark.parametrize("settings", [{"embed_width": 16, "labels": 3, "head": "classification"}, {"norm": "simple-rmsnorm"}])
def test_other_ends_and_heads(settings):
    model = orrery.create_model("electra", **{"head": None, **SMALL, **settings}).eval()
    (text,) = texts(9)
    with torch.no_grad():
        out = model(text[None])
        expected = out.hidden.mean(1) if out.logits is None else out.logits
    torch.testing.assert_close(encode(model, [text]), expected, atol=2e-5, rtol=1e-4)


def test_what_the_model_refuses_is_refused():
    model = orrery.create_model("bert", head=None, **{**SMALL, "max_positions": 12})
    for text, message in ((torch.tensor([3, 50]), "token 50"), (torch.zeros(13, dtype=torch.int64), "12 learned positions")):
        with pytest.raises(ConfigError, match=message):
            encode(model, [text])


def test_parts_without_a_short_form_are_read_in_the_general_one():
    model, (text,) = orrery.create_model("deberta", head=None, **SMALL).eval(), texts(9)
    torch.testing.assert_close(encode(model, [text]), plain(model, text), atol=2e-5, rtol=1e-4)
    assert model._reader.short is None
