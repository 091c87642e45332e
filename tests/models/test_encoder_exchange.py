"""Encoders and encoder-decoders exchanged with transformers: equal outputs of every head both ways, equal generation."""

import pytest
import torch

import orrery
from orrery.core.errors import ConfigError, CorruptionError, DataError
from orrery.generate.pairs import beam_search, target_steps
from orrery.generate.sampling import Sampling

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `hf`)")
V = 61
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": V}
KINDS = {
    "Bert": {**SIZES, "max_position_embeddings": 40, "pad_token_id": 0},
    "Roberta": {**SIZES, "max_position_embeddings": 42, "pad_token_id": 1, "type_vocab_size": 1},
}
CLASSES = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
TOKENS = torch.randint(3, V, (3, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(TOKENS)
MASK[1, 7:] = 0
MASK[2, 3:] = 0
SEGMENTS = MASK - 1
PAIR = {"vocab_size": V, "d_model": 32, "d_kv": 8, "num_heads": 3, "d_ff": 48, "num_layers": 2, "decoder_start_token_id": 0,
        "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}  # fmt: skip
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
PAIRS = {
    "t5": ("T5", {**PAIR, "num_decoder_layers": 3}),
    "t5-v1.1": ("T5", {**PAIR, **GATED}),
    "mt5": ("MT5", {**PAIR, **GATED}),
}
TARGET = torch.randint(2, V, (3, 29), generator=torch.Generator().manual_seed(1))


def randomised(model, std=0.25):
    torch.manual_seed(0)
    for p in model.parameters():  # default norms and biases would hide mistakes
        torch.nn.init.normal_(p, std=std)
    return model.eval()


def encoder(kind, cls, **settings):
    labels = {} if "id2label" in settings else {"num_labels": 2 if "Question" in cls else 3}
    config = getattr(transformers, f"{kind}Config")(**{**KINDS[kind], **labels, **settings})
    return randomised(getattr(transformers, kind + cls)(config))


def answers(model, cls):
    """What their model says, zero at padding."""
    padded = TOKENS.masked_fill(MASK == 0, model.config.pad_token_id)
    out = model(padded, attention_mask=MASK)
    if cls == "Model":
        return out.last_hidden_state * MASK[..., None], out.pooler_output
    if cls == "ForQuestionAnswering":
        return (torch.stack([out.start_logits, out.end_logits], -1) * MASK[..., None],)
    return (out.logits * MASK[..., None] if out.logits.dim() == 3 else out.logits,)


def ours(model, cls):
    out = model.eval()(TOKENS, segments=SEGMENTS)
    if cls == "Model":
        return out.hidden, out.logits
    return (out.logits * MASK[..., None] if out.logits.dim() == 3 else out.logits,)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_one_that_was_drawn_here_is_equal_at_every_id(kind, tmp_path):
    """RoBERTa of theirs gives the padding id no position; of a tokenizer made here no id means that."""
    own = orrery.create_model(kind.lower(), width=32, depth=1, vocab_size=V, seed=0, **{"mixer.head_dim": 8}).eval()
    orrery.to_transformers(own, tmp_path / "hf")
    theirs = getattr(transformers, f"{kind}ForMaskedLM").from_pretrained(tmp_path / "hf").eval()
    every = torch.arange(V)[None]
    assert torch.allclose(theirs(every).logits, own(every).logits, atol=1e-5)
    again = orrery.from_transformers(tmp_path / "hf")
    assert again.config.embedding == own.config.embedding and torch.equal(again(every).logits, own(every).logits)
    read = orrery.from_transformers(encoder("Roberta", "ForMaskedLM"))
    assert read.config.embedding.padding == 1, "a published one keeps its own"


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_head_is_equal_there_and_back(kind, cls, tmp_path):
    hf = encoder(kind, cls)
    own = orrery.from_transformers(hf)
    for found, want in zip(ours(own, cls), answers(hf, cls), strict=True):
        assert torch.allclose(found, want, atol=1e-4)
    orrery.to_transformers(own, tmp_path / "hf")
    back = getattr(transformers, kind + cls).from_pretrained(tmp_path / "hf").eval()
    for found, want in zip(answers(back, cls), answers(hf, cls), strict=True):
        assert torch.equal(found, want)
    again = orrery.from_transformers(tmp_path / "hf")
    assert type(again.head) is type(own.head) and again.config == own.config


@torch.no_grad()
def test_float64_and_sentence_types():
    hf = encoder("Bert", "ForMaskedLM").double()
    own, types = orrery.from_transformers(hf).eval(), (TOKENS % 2)
    found = own(TOKENS, segments=SEGMENTS, types=types).logits * MASK[..., None]
    want = hf(TOKENS, attention_mask=MASK, token_type_ids=types).logits * MASK[..., None]
    assert found.dtype == torch.float64 and float((found - want).abs().max()) < 1e-8


DROPPED = {  # kind, class, their settings: the head's dropout
    ("Bert", "ForSequenceClassification", "classifier_dropout"): 0.3,
    ("Bert", "ForTokenClassification", ""): 0.2,
    ("Bert", "ForMultipleChoice", "classifier_dropout"): 0.3,
    ("Bert", "ForQuestionAnswering", "classifier_dropout"): 0.0,
    ("Roberta", "ForSequenceClassification", ""): 0.2,
    ("Roberta", "ForTokenClassification", "classifier_dropout"): 0.3,
    ("DistilBert", "ForSequenceClassification", "seq_classif_dropout"): 0.3,
    ("DistilBert", "ForQuestionAnswering", "qa_dropout"): 0.3,
    ("Electra", "ForSequenceClassification", "classifier_dropout"): 0.3,
    ("DebertaV2", "ForSequenceClassification", "cls_dropout"): 0.3,
    ("DebertaV2", "ForTokenClassification", ""): 0.2,
}


@pytest.mark.parametrize("case", DROPPED, ids="-".join)
def test_a_head_s_dropout_is_theirs_there_and_back(case, tmp_path):
    kind, cls, name = case
    small = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "dropout": 0.2, "attention_dropout": 0.0}
    if kind != "DistilBert":
        small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "hidden_dropout_prob": 0.2}
    if kind == "DebertaV2":
        small |= {"relative_attention": True, "share_att_key": True, "pos_att_type": ["c2p", "p2c"], "norm_rel_ebd": "layer_norm"}
    config = getattr(transformers, f"{kind}Config")(vocab_size=V, **small, **({name: 0.3} if name else {}))
    own = orrery.from_transformers(getattr(transformers, kind + cls)(config))
    assert own.head.config.dropout == DROPPED[case]
    orrery.to_transformers(own, tmp_path)
    again = getattr(transformers, kind + cls).from_pretrained(tmp_path)
    held = [getattr(again, "dropout", None), getattr(getattr(again, "classifier", None), "dropout", None)]
    assert [each.p for each in held if each is not None] == ([DROPPED[case]] if cls != "ForQuestionAnswering" or kind == "DistilBert" else [])


def test_labels_and_kinds_of_problem_are_kept(tmp_path):
    named = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    hf = encoder("Bert", "ForSequenceClassification", problem_type="multi_label_classification", **named)
    own = orrery.from_transformers(hf)
    assert own.config.head["name"] == "multi-label" and own.head.config.names == ("no", "yes")
    orrery.to_transformers(own, tmp_path / "hf")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "hf")
    assert config.id2label == {0: "no", 1: "yes"} and config.problem_type == "multi_label_classification"
    one = orrery.from_transformers(encoder("Bert", "ForSequenceClassification", num_labels=1))
    assert one.config.head["name"] == "regression"


@torch.no_grad()
def test_the_next_sentence_is_a_class(tmp_path):
    hf, types = encoder("Bert", "ForNextSentencePrediction").double(), (torch.arange(12) > 2).long().expand(3, -1)
    want = hf(TOKENS, attention_mask=MASK, token_type_ids=types).logits
    own = orrery.from_transformers(hf).eval()
    assert float((own(TOKENS, segments=SEGMENTS, types=types).logits - want).abs().max()) < 1e-8
    assert own.config.head["name"] == "classification" and own.head.config.names == ("next", "random")
    orrery.to_transformers(own, tmp_path / "hf")  # their class has a name for two classes only: any classification is written as this
    back = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    assert float((back(TOKENS, attention_mask=MASK, token_type_ids=types).logits - want).abs().max()) < 1e-12
    assert back.config.id2label == {0: "next", 1: "random"}


@torch.no_grad()
def test_choices_are_documents_of_one_row(tmp_path):
    """Two questions, of three choices and of one; theirs wants rows of equally many."""
    hf, types = encoder("Bert", "ForMultipleChoice").double(), (torch.arange(12) > 2).long().expand(3, -1)
    want = hf(TOKENS[None], attention_mask=MASK[None], token_type_ids=types[None]).logits
    own = orrery.from_transformers(hf).eval()
    assert own.config.head["name"] == "multiple-choice"
    kept, marks = MASK.bool(), torch.full((2, int(MASK.sum())), -1)
    tokens, sides = torch.zeros_like(marks), torch.zeros_like(marks)
    tokens[0], sides[0], marks[0] = TOKENS[kept], types[kept], torch.arange(3).repeat_interleave(MASK.sum(1))
    tokens[1, :7], sides[1, :7], marks[1, :7] = TOKENS[1, :7], types[1, :7], 0
    found = own(tokens, segments=marks, types=sides).logits
    assert found.shape == (2, 3) and float((found[0] - want[0]).abs().max()) < 1e-8 and abs(float(found[1, 0] - want[0, 1])) < 1e-8
    assert found[1].softmax(-1).tolist() == [1, 0, 0] and own.head.predict(found).tolist() == [int(want.argmax()), 0]
    assert float(own.head.loss(found, torch.tensor([2, 0])) * 2 + want.log_softmax(-1)[0, 2]) == pytest.approx(0, abs=1e-8)
    orrery.to_transformers(own, tmp_path / "hf")
    back = transformers.BertForMultipleChoice.from_pretrained(tmp_path / "hf").eval()
    assert float((back(TOKENS[None], attention_mask=MASK[None], token_type_ids=types[None]).logits - want).abs().max()) < 1e-12
    with pytest.raises(DataError, match="row 1 of the batch holds no choice"):
        _ = own(tokens, segments=marks.masked_fill(torch.tensor([[False], [True]]), -1), types=sides).logits


def test_what_has_no_counterpart_is_named(tmp_path):
    with pytest.raises(ConfigError, match="the head of BertLMHeadModel has no counterpart here; known: BertModel, BertForMaskedLM"):
        orrery.from_transformers(encoder("Bert", "LMHeadModel"))
    with pytest.raises(ConfigError, match="activation swish"):
        orrery.from_transformers(encoder("Bert", "Model", hidden_act="swish"))
    with pytest.raises(ConfigError, match="bert has no class with the head 'ordinal'"):
        orrery.to_transformers(orrery.create_model("bert", width=32, depth=1, head="ordinal"), tmp_path / "a")
    with pytest.raises(ConfigError, match="BERT has learned positions"):
        orrery.to_transformers(orrery.create_model("bert", width=32, depth=1, window=4), tmp_path / "b")
    own = orrery.from_transformers(encoder("Bert", "Model"))
    orrery.to_transformers(own, tmp_path / "c")
    file = next((tmp_path / "c").glob("*.safetensors"))
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    tensors.pop("bert.encoder.layer.1.output.dense.bias")
    save_file(tensors, file)
    with pytest.raises(CorruptionError, match=r"lacks bert.encoder.layer.1.output.dense.bias"):
        orrery.from_transformers(tmp_path / "c")


@pytest.mark.parametrize("case", PAIRS)
@torch.no_grad()
def test_encoder_decoders_are_equal_there_and_back(case, tmp_path):
    kind, settings = PAIRS[case]
    cls = getattr(transformers, f"{kind}ForConditionalGeneration")
    hf = randomised(cls(getattr(transformers, f"{kind}Config")(**settings)))
    own = orrery.from_transformers(hf).eval()
    want = hf(TOKENS, attention_mask=MASK, decoder_input_ids=TARGET).logits
    assert torch.allclose(own(TOKENS, TARGET, source_segments=SEGMENTS).logits, want, atol=1e-4)
    orrery.to_transformers(own, tmp_path / "hf")
    back = cls.from_pretrained(tmp_path / "hf").eval()
    assert torch.allclose(back(TOKENS, attention_mask=MASK, decoder_input_ids=TARGET).logits, want, atol=1e-5)
    double = orrery.from_transformers(hf.double()).eval()
    exact = hf(TOKENS, attention_mask=MASK, decoder_input_ids=TARGET).logits
    found = double(TOKENS, TARGET, source_segments=SEGMENTS).logits
    assert found.dtype == torch.float64 and float((found - exact).abs().max()) < 1e-6  # their norms are float32 whatever the model is


@pytest.mark.parametrize("kind", ["T5", "MT5"])
@pytest.mark.parametrize("cls", ["EncoderModel", "ForTokenClassification"])
@torch.no_grad()
def test_the_encoder_of_t5_alone_is_equal_there_and_back(kind, cls, tmp_path):
    hf_class = getattr(transformers, kind + cls)
    hf = randomised(hf_class(getattr(transformers, f"{kind}Config")(**{**PAIR, **(GATED if kind == "MT5" else {}), "num_labels": 3}))).double()
    own = orrery.from_transformers(hf).eval()
    assert own.config.architecture == "t5-encoder" and (own.head is None) == (cls == "EncoderModel")
    want = hf(TOKENS, attention_mask=MASK)[0] * MASK[..., None]
    out = own(TOKENS, segments=SEGMENTS)
    found = (out.hidden if own.head is None else out.logits) * MASK[..., None]
    assert float((found - want).abs().max()) < 1e-6  # their norms are float32 whatever the model is
    orrery.to_transformers(own, tmp_path / "hf")
    back = hf_class.from_pretrained(tmp_path / "hf").eval()
    assert float((back(TOKENS, attention_mask=MASK)[0] * MASK[..., None] - want).abs().max()) < 1e-6
    assert orrery.from_transformers(tmp_path / "hf").config == own.config


def until_stop(row, stop=1):
    """Ids up to the stop token, which is left out."""
    ids = row.tolist()
    return ids[: ids.index(stop)] if stop in ids else ids


@pytest.mark.parametrize("std", [0.3, 0.5])
def test_generation_is_theirs(std):
    """Greedy and beam search; the small vocabulary makes targets stop early, late and never."""
    hf = randomised(transformers.T5ForConditionalGeneration(transformers.T5Config(**{**PAIR, "vocab_size": 7})), std)
    own, source = orrery.from_transformers(hf).eval(), TOKENS % 5 + 2
    common = {"attention_mask": MASK, "max_new_tokens": 12, "do_sample": False}
    want = hf.generate(source, num_beams=1, **common)[:, 1:]
    greedy = torch.stack(list(target_steps(own, source, SEGMENTS, 12, Sampling(temperature=0), None)), 1)
    assert [until_stop(row) for row in greedy] == [until_stop(row) for row in want]
    for penalty in (0.0, 1.0, 2.0):
        want = hf.generate(source, num_beams=3, length_penalty=penalty, **common)[:, 1:]
        found = beam_search(own, source, SEGMENTS, 12, 3, penalty)
        assert [until_stop(row) for row in found] == [until_stop(row) for row in want]
    alone = orrery.generate(own, source[:1], 12, beams=3)
    assert until_stop(alone[0]) == until_stop(hf.generate(source[:1], num_beams=3, max_new_tokens=12, do_sample=False)[0, 1:])
