"""Prepared steps that are kept from call to call: the same tokens as a step prepared anew, and none of a model that has changed."""

import copy
import gc
import weakref

import pytest
import torch

import orrery
from orrery.generate.engine import decode_steps
from orrery.generate.sampling import Sampling
from orrery.models import stepper as steppers

KEPT = [
    "transformer", "transformer(window=6)", "gpt2", "rwkv4", "rwkv6", "rwkv7", "mamba", "mamba2", "gated-deltanet", "xlstm-large", "lstm",
    "slstm", "lizard(window=6,head_dim=16)", "gla(canon=ac)", "qrnn", "latent-attention(window=5)", "performer", "zamba2", "griffin",
]  # fmt: skip
PROMPTS = torch.randint(0, 61, (2, 14), generator=torch.Generator().manual_seed(3))


def build(name="rwkv4"):
    model = orrery.create_model(name, width=64, depth=2, vocab_size=61, seed=1).eval()
    with torch.no_grad():  # parameters that start at 0 or 1 would hide mistakes
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model


@torch.inference_mode()
def scores(model, prompt, close=True):
    """The stepper, and what it says about the prompt's tokens read once more, at most six."""
    step = model.stepper(model(prompt).state, 30)
    found = torch.stack([step(token).clone() for token in prompt.t()[:6]])
    if close:
        step.close()
    return step, found


def kept(model):
    return list(steppers._kept.get(model, ()))


@pytest.mark.parametrize("name", KEPT)
def test_it_says_the_same_as_one_prepared_anew(name):
    model = build(name)
    wanted = [scores(model, prompt, close=False)[1] for prompt in (PROMPTS[:1], PROMPTS[1:, :9])]
    assert not kept(model)  # nobody gave one back
    first, found = scores(model, PROMPTS[:1])
    second, other = scores(model, PROMPTS[1:, :9])
    third, again = scores(model, PROMPTS[:1])
    assert first is second is third
    assert torch.equal(found, wanted[0]) and torch.equal(other, wanted[1]) and torch.equal(again, wanted[0])


def test_generate_gives_it_back_also_when_it_is_left_early():
    model, tokens = build(), PROMPTS[:1]
    want = orrery.generate(model, tokens, 7, temperature=0, use_state=False)
    assert not kept(model)
    assert torch.equal(orrery.generate(model, tokens, 7, temperature=0), want)
    held = kept(model)
    assert len(held) == 1 and held[0].model is None
    pieces = decode_steps(model, tokens, None, 7, Sampling(temperature=0.0), None, True)
    next(pieces), next(pieces)
    assert not kept(model)  # in use
    assert torch.equal(orrery.generate(model, tokens, 7, temperature=0), want)  # beside it, another one
    pieces.close()
    assert len(kept(model)) == 2
    assert torch.equal(orrery.generate(model, tokens, 7, temperature=0), want)


def step_of_an_optimizer(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


def behind_the_versions(model):
    for p in model.parameters():
        p.data.mul_(1.1)


def loaded(model):
    model.load_state_dict({name: 0.7 * value for name, value in model.state_dict().items()})


def assigned(model):
    model.load_state_dict({name: 0.7 * value for name, value in model.state_dict().items()}, assign=True)


def there_and_back(model):
    model.double().float()


def another_module(model):
    class Louder(torch.nn.Linear):
        def forward(self, x):
            return 3 * super().forward(x)

    loud = Louder(64, 64, bias=False)
    loud.weight = model.blocks[1].mixer.out.weight
    model.blocks[1].mixer.out = loud


class Halved(torch.nn.Module):
    def forward(self, weight):
        return weight / 2


def parametrised(model):
    torch.nn.utils.parametrize.register_parametrization(model.blocks[1].mixer.out, "weight", Halved())


def another_eps(model):
    model.blocks[1].mixer_norm.eps = 0.5


def another_setting(model):
    model.head.softcap = 0.3


def one_layer_twice(model):
    model.blocks[1] = model.blocks[0]


CHANGES = [
    step_of_an_optimizer, behind_the_versions, loaded, assigned, there_and_back, another_module, parametrised, another_eps, another_setting,
    one_layer_twice,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_has_changed_prepares_anew(change):
    model, tokens = build(), PROMPTS[:1]
    before, _ = scores(model, tokens)
    change(model)
    after, found = scores(model, tokens, close=False)
    assert before is not after
    steppers.forget(model)
    assert torch.equal(scores(model, tokens, close=False)[1], found)
    with torch.inference_mode():
        twice = model(torch.cat([tokens, tokens[:, :6]], 1)).logits[:, -6:]
    assert torch.allclose(found[:, 0], twice[0], atol=2e-4 * float(twice.abs().max()))


def test_who_listens_to_all_modules_hears_every_token():
    model, calls = build(), []
    scores(model, PROMPTS[:1])
    with torch.nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(module)), torch.inference_mode():
        assert model.stepper(model(PROMPTS[:1]).state, 30) is None
    assert model.blocks[1].mixer in calls


def test_what_collects_garbage_may_close_a_step_at_any_place():
    model = build()
    step, _ = scores(model, PROMPTS[:1], close=False)
    with steppers._lock:
        step.close()  # as the end of a generator does that is found unreachable here
    assert kept(model) == [step]


def test_a_step_that_outlives_the_names_of_its_module_says_nothing(monkeypatch):
    model = build()
    step, _ = scores(model, PROMPTS[:1], close=False)
    with monkeypatch.context() as leaving:
        leaving.setattr(steppers, "_lock", None)  # as the interpreter leaves it to generators that nobody has ended
        step.close()
    assert not kept(model)


def test_rows_threads_and_long_prompts_have_their_own():
    model = build()
    one, _ = scores(model, PROMPTS[:1])
    two, _ = scores(model, PROMPTS)
    assert one is not two and len(kept(model)) == 2
    with torch.inference_mode():
        long = model.stepper(model(PROMPTS[:1]).state, 1000)
    assert long is not one and len(kept(model)) == 2
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert scores(model, PROMPTS[:1], close=False)[0] is not one
    finally:
        torch.set_num_threads(threads)
    assert scores(model, PROMPTS[:1])[0] is one


def test_a_copy_has_none_and_a_model_takes_its_own_with_it():
    model = build()
    step, found = scores(model, PROMPTS[:1])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert not kept(twin) and torch.equal(scores(twin, PROMPTS[:1])[1], found)
    gone = weakref.ref(step), weakref.ref(model)
    del model, step
    gc.collect()
    assert gone[0]() is None and gone[1]() is None


def test_a_great_state_and_a_step_that_was_interrupted_are_not_kept(monkeypatch):
    model = build()
    with torch.inference_mode():
        step = model.stepper(model(PROMPTS[:1]).state, 30)
        monkeypatch.setattr(step.run, "advance", lambda tokens: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            step(PROMPTS[0, :1])
    step.close()
    assert not kept(model)
    monkeypatch.setattr(steppers, "_MOST_BYTES", 100)
    scores(model, PROMPTS[:1])
    assert not kept(model)
