"""The decoder frame, storage and wrapping, as a user meets them."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import orrery
from orrery.core.errors import ConfigError, CorruptionError, StateError, StorageError
from orrery.core.files import atomic_directory
from orrery.nn.contract import Context

GROUPED = "transformer(kv_heads=1,qk_norm=true,rope=0.5)"
NAMES = ["transformer", "gpt2", "transformer(window=5,canon=abcd)", GROUPED, "attention | attention"]


def tiny(name="transformer", **settings):
    heads = {} if "|" in name else {"mixer.head_dim": 8}
    return orrery.create_model(name, width=32, depth=2, vocab_size=50, seed=0, **heads, **settings)


def tokens(batch=2, length=20, seed=0):
    return torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_documents_padding_and_cuts_change_nothing(name):
    model, x = tiny(name).double().eval(), tokens(2, 24)
    segments = torch.zeros(2, 24, dtype=torch.int64)
    segments[0, :4], segments[1, 8:11], segments[1, 15:] = -1, -1, 3
    whole = model(x, segments=segments).hidden
    assert torch.allclose(whole[0, 4:], model(x[:1, 4:]).hidden[0]) and not whole[0, :4].any()
    assert torch.allclose(whole[1, 15:], model(x[1:, 15:]).hidden[0])
    joined = torch.cat([x[1:, :8], x[1:, 11:15]], 1)
    assert torch.allclose(torch.cat([whole[1, :8], whole[1, 11:15]]), model(joined).hidden[0])
    for cut in (1, 9, 17):
        first = model(x[:, :cut], segments=segments[:, :cut])
        for _ in range(2):  # a state is a value: twice the same
            rest = model(x[:, cut:], state=first.state, segments=segments[:, cut:])
            assert torch.allclose(torch.cat([first.hidden, rest.hidden], 1), whole)


@pytest.mark.parametrize("name", NAMES)
def test_state_bytes_are_what_a_state_holds(name):
    model = tiny(name).eval()
    for length in (1, 3, 12):
        with torch.no_grad():
            assert model(tokens(1, length)).state.bytes() == model.state_bytes(length)


def test_selected_rows_continue_alone():
    model, x = tiny().eval(), tokens(3, 10)
    state = model(x[:, :6]).state
    picked = model(x[[2, 0], 6:], state=state.select(torch.tensor([2, 0]))).hidden
    assert torch.allclose(picked, model(x).hidden[[2, 0], 6:], atol=1e-6)


def test_run_embeds_and_recomputation_give_the_same():
    model, x = tiny(), tokens()
    out = model(x)
    assert torch.equal(model(embeds=model.embed(x)).hidden, out.hidden)
    out.logits.square().mean().backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.checkpoint_blocks = True
    model(x).logits.square().mean().backward()
    assert all(torch.allclose(a, p.grad) for a, p in zip(plain, model.parameters(), strict=True))


def test_recomputing_finds_what_earlier_layers_left_not_what_a_layer_left_itself():
    """The first RWKV-7 layer here stands behind attention: it finds no first values, and leaves its own."""
    model = orrery.create_model("transformer + rwkv7", width=32, depth=3, vocab_size=50, seed=0).double().train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x, found = tokens(2, 9), []
    for model.checkpoint_blocks in (False, True):
        model.zero_grad()
        model(x).hidden.square().mean().backward()
        found.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
    for plain, again in zip(*found, strict=True):
        assert again is plain is None or torch.equal(plain, again)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: m(tokens().float()), ConfigError, "int64"),
        (lambda m: m(tokens() + 40), ConfigError, "outside the vocabulary of 50"),
        (lambda m: m(tokens(2, 0)), StateError, "empty"),
        (lambda m: m(), ConfigError, "either tokens"),
        (lambda m: m(tokens(3), state=m(tokens(2)).state), StateError, "2 rows, the input 3"),
        (lambda m: m(tokens(), state=tiny("transformer*3")(tokens()).state._replace(blocks=())), StateError, "does not belong"),
        (lambda m: m(tokens(), ctx=Context(memory=torch.zeros(2, 3, 32))), ConfigError, "cannot honour 'memory'"),
        (lambda m: m(embeds=torch.zeros(2, 3, 31)), ConfigError, "embeds must have shape"),
        (lambda _: tiny("gpt2", max_positions=8)(tokens(1, 9)), ConfigError, "8 learned positions"),
    ],
)
def test_misuse_is_one_sentence(call, error, words):
    with pytest.raises(error, match=words):
        call(tiny())


def test_learned_positions_are_counted_over_cuts():
    model = tiny("gpt2", max_positions=8)
    state = model(tokens(1, 5)).state
    with pytest.raises(ConfigError, match="position 8"):
        model(tokens(1, 4), state=state)


def test_storage_round_trip(tmp_path):
    for name in ("transformer", "gpt2*2 + transformer"):
        model = tiny(name)
        orrery.save(model, tmp_path / "m")
        again = orrery.load(tmp_path / "m")
        assert again.config == model.config and torch.equal(again(tokens()).hidden, model(tokens()).hidden)
        assert "head.weight" not in load_file(tmp_path / "m" / "model.safetensors")


def rewrite(folder, change):
    """Seal a folder again after a change, so that only the check behind the checksum can find it."""
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    change(config, weights)
    with atomic_directory(folder) as tmp:
        save_file(weights, tmp / "model.safetensors")
        (tmp / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda c, w: w.pop("norm.weight"), CorruptionError, "missing"),
        (lambda c, w: w.update(extra=torch.zeros(1)), CorruptionError, "unexpected"),
        (lambda c, w: w.update({"norm.weight": torch.zeros(31)}), CorruptionError, "shape"),
        (lambda c, w: c.update(format=9), CorruptionError, "format 1"),
        (lambda c, w: c.update(kind="pickle"), CorruptionError, "cannot build"),
        (lambda c, w: c["config"].update(width="os.system"), ConfigError, "whole number"),
        (lambda c, w: c["config"]["blocks"][0]["mixer"].update(name="os.system"), Exception, "unknown mixer"),
        (lambda c, w: c["config"].update(auto_map={"AutoModel": "evil.py"}), ConfigError, "unknown setting"),
    ],
)
def test_wrong_contents_are_refused(tmp_path, change, error, words):
    orrery.save(tiny(), tmp_path / "m")
    rewrite(tmp_path / "m", change)
    with pytest.raises(error, match=words):
        orrery.load(tmp_path / "m")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_flipped_byte_is_found(tmp_path, name):
    orrery.save(tiny(), tmp_path / "m")
    data = bytearray((tmp_path / "m" / name).read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "m" / name).write_bytes(data)
    with pytest.raises(CorruptionError, match=name):
        orrery.load(tmp_path / "m")
    with pytest.raises(StorageError, match="no folder"):
        orrery.load(tmp_path / "absent")


FULL = """
import resource, sys, orrery
from orrery.core.errors import StorageError
model = orrery.create_model("transformer", width=32, depth=2, vocab_size=50, seed=0)
orrery.save(model, sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    orrery.save(orrery.create_model("transformer", width=32, depth=2, vocab_size=50, seed=1), sys.argv[1])
except StorageError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="limits of a file's size exist on POSIX only")
def test_a_full_disk_keeps_the_older_save(tmp_path):
    run = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "m")], capture_output=True, text=True, check=True)
    assert "cannot write" in run.stdout
    first = orrery.create_model("transformer", width=32, depth=2, vocab_size=50, seed=0)
    assert torch.equal(orrery.load(tmp_path / "m").embed.weight, first.embed.weight)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.out = nn.Embedding(50, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 50)

    def forward(self, x):
        return self.out(self.rnn(self.embed(x))[0])


def test_wrapped_modules_take_part():
    model = orrery.wrap(Mine(), name="mine")
    x = tokens(2, 10)
    whole = model(x).logits
    first = model(x[:, :4])
    assert model.vocab_size == 50 and torch.allclose(model(x[:, 4:], state=first.state).logits, whole[:, 4:])
    assert model.num_parameters() == sum(p.numel() for p in model.module.rnn.parameters())
    assert torch.equal(orrery.generate(model, x, 5, seed=1), orrery.generate(model, x, 5, seed=1, use_state=False))
    with pytest.raises(ConfigError, match=r"must map tokens \(B,T\)"):
        orrery.wrap(nn.Sequential(nn.Embedding(50, 8), nn.Flatten()))
    with pytest.raises(ConfigError, match="cannot be saved"):
        orrery.save(model, "never")
