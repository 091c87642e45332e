"""ModernBERT, DistilBERT, ELECTRA, DeBERTa exchanged with transformers: equal outputs of every head, both ways, in float64.

Parameters are all drawn anew, norms and biases too, and windows and buckets are shorter than the texts.
"""

import pytest
import torch

import orrery
from orrery.core.errors import ConfigError

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `hf`)")
V = 61
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": V}
LEARNED = {"max_position_embeddings": 40, "pad_token_id": 0}
MODERN = {**SIZES, "num_hidden_layers": 4, "local_attention": 6, "pad_token_id": 0}
BIASED = dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), True)
EVERY_SECOND = {"global_attn_every_n_layers": 2, "decoder_bias": False, "classifier_pooling": "mean"}
DISENTANGLED = {**SIZES, **LEARNED, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
CASES = {
    "modernbert": ("ModernBert", MODERN),
    "modernbert-biased": ("ModernBert", {**MODERN, **BIASED, **EVERY_SECOND}),
    "distilbert": ("DistilBert", {**LEARNED, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": V}),
    "deberta": ("DebertaV2", {**DISENTANGLED, "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_buckets": 4}),
    "deberta-v2": ("DebertaV2", {**DISENTANGLED, "type_vocab_size": 2, "position_biased_input": True, "max_relative_positions": 5}),
    "electra": ("Electra", {**SIZES, **LEARNED, "embedding_size": 16}),
}
CLASSES = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
V3 = {"relative_attention": True, "pos_att_type": "p2c|c2p", "position_biased_input": False, "position_buckets": 256, "share_att_key": True,
      "norm_rel_ebd": "layer_norm"}  # fmt: skip
TOKENS = torch.randint(3, V, (3, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(TOKENS)
MASK[1, 7:] = 0
MASK[2, 3:] = 0
SEGMENTS = MASK - 1


def theirs(case, cls, **settings):
    kind, own = CASES[case]
    config = getattr(transformers, f"{kind}Config")(**{**own, "num_labels": 2 if "Question" in cls else 3, **settings})
    model = getattr(transformers, kind + cls)(config)
    torch.manual_seed(0)
    for p in model.parameters():  # default norms and biases would hide mistakes
        torch.nn.init.normal_(p, std=0.25)
    return model.double().eval()


def answers(model):
    """What their model says, zero at padding."""
    out = model(TOKENS, attention_mask=MASK)
    if "start_logits" in out:
        return torch.stack([out.start_logits, out.end_logits], -1) * MASK[..., None]
    return _zeroed(out[0])


def ours(model):
    out = model.eval()(TOKENS, segments=SEGMENTS)
    return _zeroed(out.hidden if model.head is None else out.logits)


def _zeroed(x):
    if x.shape[:2] != MASK.shape:
        return x
    return x * (MASK[..., None] if x.dim() == 3 else MASK)


def exchanged(case, cls, folder, **settings):
    """Their model becomes ours and theirs again; all say the same."""
    hf = theirs(case, cls, **settings)
    own, want = orrery.from_transformers(hf), answers(hf)
    found = ours(own)
    assert found.dtype == torch.float64 and float((found - want).abs().max()) < 5e-8  # their softmax or rotation is float32 at times
    orrery.to_transformers(own, folder / "hf")
    back = type(hf).from_pretrained(folder / "hf").eval()
    assert float((answers(back) - want).abs().max()) < 1e-12
    again = orrery.from_transformers(folder / "hf")
    assert again.config == own.config and torch.equal(ours(again), found)
    return own


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_every_head_is_equal_there_and_back(case, cls, tmp_path):
    exchanged(case, cls, tmp_path)


@torch.no_grad()
def test_the_newer_head_of_deberta():
    """Version 3's own masked-lm head, and what its checkpoints hold beside it."""
    hf = theirs("deberta", "ForMaskedLM", legacy=False)
    assert float((ours(orrery.from_transformers(hf)) - answers(hf)).abs().max()) < 5e-8


@pytest.mark.parametrize("settings", [{"conv_kernel_size": 3, "conv_act": "gelu"}, {"conv_kernel_size": 5, "conv_groups": 2}])
@torch.no_grad()
def test_a_convolution_beside_the_first_layer_of_deberta(settings, tmp_path):
    own = exchanged("deberta", "ForTokenClassification", tmp_path, **settings)
    assert own.beside.conv.kernel_size == (settings["conv_kernel_size"],)
    row = torch.cat([TOKENS[0, :5], TOKENS[1, :7]])[None]  # documents in one row do not reach into each other
    both = own(row, segments=torch.tensor([[0] * 5 + [1] * 7])).hidden[0]
    alone = torch.cat([own(part).hidden[0] for part in (row[:, :5], row[:, 5:])])
    assert float((both - alone).abs().max()) < 1e-12
    states = own.hidden_states(row[:, :5])
    assert float((states[-1][0] - alone[:5]).abs().max()) < 1e-12


@torch.no_grad()
def test_a_discriminator_and_tables_as_wide_as_the_model(tmp_path):
    own = exchanged("electra", "ForPreTraining", tmp_path, embedding_size=32)
    assert own.embed_map is None and own.head.predict(ours(own)).unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("preset", "kind", "settings"),
    [
        ("modernbert-base", "ModernBert", {}),
        ("distilbert-base", "DistilBert", {}),
        ("electra-small", "Electra", {}),
        ("deberta-v3-base", "DebertaV2", {**V3, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}),
        ("deberta-v2-xlarge", "DebertaV2",
         {**V3, "hidden_size": 1536, "num_hidden_layers": 24, "num_attention_heads": 24, "intermediate_size": 6144, "conv_kernel_size": 3}),
        ("modernbert-large", "ModernBert", {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 2624}),
    ],
)
def test_published_sizes(preset, kind, settings):
    """As many parameters as transformers' model for masked words has."""
    with torch.device("meta"):
        want = getattr(transformers, f"{kind}ForMaskedLM")(getattr(transformers, f"{kind}Config")(**settings))
        found = orrery.create_model(preset, head="masked-lm")
    assert found.num_parameters(embedding=True) == sum(p.numel() for p in want.parameters())


def test_what_cannot_be_exchanged_is_named(tmp_path):
    model = orrery.create_model("modernbert", width=32, depth=3, rope=0.5)
    with pytest.raises(ConfigError, match="ModernBERT has rotary attention and GeGLU"):
        orrery.to_transformers(model, tmp_path / "hf")
    scaled = {kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")}
    hf = theirs("modernbert", "Model", rope_parameters=scaled)
    hf.config.rope_parameters["full_attention"]["rope_type"] = "axial"
    with pytest.raises(ConfigError, match="rotary scaling 'axial' has no counterpart"):
        orrery.from_transformers(hf)


def test_modernbert_learns_masked_words():
    """Forty steps of masked-lm on a short text lower the loss; global and local layers alternate, and only the first has no norm."""
    model, objective = orrery.create_model("modernbert", size="nano", seed=0), orrery.create_objective("masked-lm")
    assert [block.mixer.config.window for block in model.blocks] == [None, 64, 64]
    assert [block.mixer.config.rope_theta for block in model.blocks] == [160000.0, 10000.0, 10000.0]
    assert [len(list(block.mixer_norm.parameters())) for block in model.blocks] == [0, 1, 1]
    text = torch.tensor(list(b"the quick brown fox jumps over the lazy dog and runs away from the angry bear. " * 20))
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    torch.manual_seed(0)
    for _ in range(40):
        rows = torch.stack([text[k : k + 32] for k in torch.randint(len(text) - 32, (4,))])
        loss, _ = objective(model, {"tokens": rows})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) / 5 < 0.65 * losses[0]


# ---------------------------------------------------------------- BART

TARGET = torch.randint(3, V, (3, 9), generator=torch.Generator().manual_seed(1))


def bart(**settings):
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 2}
    sizes |= {"encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "max_position_embeddings": 40, "vocab_size": V, "forced_eos_token_id": None}
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**{**sizes, **settings}))
    torch.manual_seed(0)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.double().eval()


@torch.no_grad()
def test_bart_is_equal_there_and_back(tmp_path):
    hf = bart()
    own = orrery.from_transformers(hf).eval()
    want = hf(TOKENS, attention_mask=MASK, decoder_input_ids=TARGET).logits
    assert float((own(TOKENS, TARGET, source_segments=SEGMENTS).logits - want).abs().max()) < 1e-8
    orrery.to_transformers(own, tmp_path / "hf")
    back = type(hf).from_pretrained(tmp_path / "hf").eval()
    assert float((back(TOKENS, attention_mask=MASK, decoder_input_ids=TARGET).logits - want).abs().max()) < 1e-12
    assert orrery.from_transformers(tmp_path / "hf").config == own.config
    hf.final_logits_bias[0, 3] = 1.0
    with pytest.raises(ConfigError, match="a bias of its logits"):
        orrery.from_transformers(hf)
    with pytest.raises(ConfigError, match="embedding that is scaled"):
        orrery.from_transformers(bart(scale_embedding=True))


@torch.no_grad()
def test_bart_writes_what_theirs_writes():
    """Greedy generation."""
    hf = bart(vocab_size=7)
    hf.model.decoder.layers[-1].final_layer_norm.bias.zero_()  # else it alone decides what is written
    hf = hf.float()
    own, source = orrery.from_transformers(hf).eval(), TOKENS % 4 + 3
    want = hf.generate(source, attention_mask=MASK, max_new_tokens=12, do_sample=False, num_beams=1)[:, 1:]
    for row in range(3):
        found = orrery.generate(own, source[row : row + 1, : int(MASK[row].sum())], 12, temperature=0)[0].tolist()
        ids = want[row].tolist()
        assert found[: found.index(2) if 2 in found else None] == ids[: ids.index(2) if 2 in ids else None]


@torch.no_grad()
def test_barts_steps_are_theirs_along_a_varied_target():
    """Cached step by cached step, in float64: what either would write next at each of 24 places, and with what scores."""
    hf = bart()
    for name, p in hf.named_parameters():  # what is the same at every place is made small, so that tokens decide
        if name.endswith("bias"):
            p.mul_(0.1)
        elif "norm" in name:
            p.add_(1.0)
        elif name.endswith(("out_proj.weight", "fc2.weight")):
            p.mul_(0.2)
    own = orrery.from_transformers(hf).eval()
    target = torch.randint(3, V, (3, 24), generator=torch.Generator().manual_seed(2))
    memory, state = own.encode(TOKENS, SEGMENTS), None
    encoded, past, written = hf.model.encoder(TOKENS, attention_mask=MASK), None, []
    for step in range(24):
        now = target[:, step : step + 1]
        want = hf(encoder_outputs=encoded, attention_mask=MASK, decoder_input_ids=now, past_key_values=past, use_cache=True)
        past = want.past_key_values
        found = own.decode(now, memory if state is None else None, state=state)
        state = found.state
        assert float((found.logits - want.logits).abs().max()) < 1e-8
        written.append(want.logits[:, 0].argmax(-1))
    chosen = torch.stack(written, 1)
    assert all(len(row.unique()) >= 8 for row in chosen), "the target was to be varied"
    assert float((chosen[:, 1:] != chosen[:, :-1]).float().mean()) > 0.6
