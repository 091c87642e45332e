"""Encoder-decoders that answer with a head: transformers' classes there and back, and what heads read when texts are packed.

That padding, packing and shifting change nothing, and that every parameter learns, is in the contract (`heads` of
:mod:`orrery.testing.encoder`), which every encoder-decoder passes.
"""

import numpy as np
import pytest
import torch

import orrery
from all_double import AllDouble, double
from orrery.core.errors import ConfigError, DataError, StateError
from orrery.models.convert import with_head
from orrery.models.encode import encode
from orrery.models.encoder_decoder import EncoderDecoder, PairReader
from orrery.nn.contract import Context

V = 61
T5 = {"vocab_size": V, "d_model": 32, "d_kv": 8, "num_heads": 3, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3,
      "decoder_start_token_id": 0, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}  # fmt: skip
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 2,
        "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "max_position_embeddings": 40, "vocab_size": V}  # fmt: skip
CASES = {"t5": ("T5", T5), "t5-v1.1": ("T5", {**T5, **GATED}), "mt5": ("MT5", {**T5, **GATED}), "bart": ("Bart", BART)}
MASK = torch.ones(3, 12, dtype=torch.int64)
MASK[1, 7:] = 0
MASK[2, 4:] = 0
ENDS = ((5, 10), (2, 6), (0, 3))  # two tokens that end something in every text, as their class for documents asks; one not the last


def theirs(case, cls, std=0.25, **settings):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `hf`)")
    kind, own = CASES[case]
    labels = {"num_labels": 2} if "Question" in cls else {"id2label": {0: "good", 1: "bad", 2: "ugly"}, "classifier_dropout": 0.1}
    model = getattr(transformers, kind + cls)(getattr(transformers, f"{kind}Config")(**{**own, **labels, **settings}))
    torch.manual_seed(0)
    for p in model.parameters():  # default norms and biases would hide mistakes
        torch.nn.init.normal_(p, std=std)
    return model.eval()


def texts(stop, pad):
    tokens = torch.randint(3, V, MASK.shape, generator=torch.Generator().manual_seed(0))
    for row, places in enumerate(ENDS):
        tokens[row, list(places)] = stop
    return tokens.masked_fill(MASK == 0, pad)


def answers(model, tokens):
    """What their model says; of answers' ends, zero at padding."""
    out = model(tokens, attention_mask=MASK)
    return out.logits if "logits" in out else torch.stack([out.start_logits, out.end_logits], -1) * MASK[..., None]


def ours(model, tokens):
    scores = model.eval()(tokens, segments=MASK - 1).logits
    return scores if scores.dim() == 2 else scores * MASK[..., None]


@pytest.mark.parametrize("cls", ["ForSequenceClassification", "ForQuestionAnswering"])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_heads_on_both_stacks_are_equal_there_and_back(case, cls, tmp_path):
    """Padded texts with several ends, in float32 and in float64 throughout; labels and dropout are kept."""
    hf = theirs(case, cls)
    tokens = texts(hf.config.eos_token_id, hf.config.pad_token_id)
    own, want = orrery.from_transformers(hf), answers(hf, tokens)
    assert isinstance(own, PairReader) and float((ours(own, tokens) - want).abs().max()) < 1e-5
    orrery.to_transformers(own, tmp_path / "hf")
    back = type(hf).from_pretrained(tmp_path / "hf").eval()
    assert float((answers(back, tokens) - want).abs().max()) < 1e-5
    again = orrery.from_transformers(tmp_path / "hf")
    assert again.config == own.config and torch.equal(ours(again, tokens), ours(own, tokens))
    if "Sequence" in cls:
        assert own.head.config.names == ("good", "bad", "ugly") and back.config.id2label == hf.config.id2label
        assert own.head.config.dropout == back.config.classifier_dropout == 0.1
    exact = orrery.from_transformers(double(hf))
    with AllDouble():
        assert float((ours(exact, tokens) - answers(hf, tokens)).abs().max()) < 1e-12


@torch.no_grad()
def test_numbers_and_several_labels_are_their_problem_types(tmp_path):
    hf = theirs("bart", "ForSequenceClassification", problem_type="multi_label_classification")
    own = orrery.from_transformers(hf)
    assert own.config.head["name"] == "multi-label"
    for name, problem in (("multi-label", "multi_label_classification"), ("regression", "regression")):
        orrery.to_transformers(with_head(own, name, labels=2), tmp_path / name)
        back = type(hf).from_pretrained(tmp_path / name)
        assert back.config.problem_type == problem and orrery.from_transformers(tmp_path / name).config.head["name"] == name
    with pytest.raises(ConfigError, match="bart has no class with the head 'tagging'"):
        orrery.to_transformers(with_head(own, "tagging", labels=2), tmp_path / "no")


@pytest.mark.parametrize("case", ["t5", "t5-v1.1", "bart"])
@torch.no_grad()
def test_a_writers_body_gives_a_head_what_their_classes_give_it(case, tmp_path):
    """Their weights for writing, read by their class with a head, against ours with a head put on; T5's last norm is not divided."""
    writer = theirs(case, "ForConditionalGeneration")
    own = with_head(orrery.from_transformers(writer), "classification", labels=3)
    headed = theirs(case, "ForSequenceClassification")
    body = headed.model if case == "bart" else headed.transformer
    body.load_state_dict(writer.model.state_dict() if case == "bart" else writer.state_dict(), strict=False)
    for ours_, theirs_ in ((own.head.dense, headed.classification_head.dense), (own.head.out, headed.classification_head.out_proj)):
        ours_.load_state_dict(theirs_.state_dict())
    tokens = texts(headed.config.eos_token_id, headed.config.pad_token_id)
    assert float((ours(own, tokens) - answers(headed, tokens)).abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_the_head_reads_the_state_at_the_last_end(name):
    """In float64, from the decoder's states by numpy: last end of each document, one layer with tanh, one without."""
    reader = orrery.create_model(name, width=32, depth=2, vocab_size=V, head="classification", labels=3, stop=5, start=7, seed=1).double().eval()
    assert reader.config.head == {"name": "classification", "pool": "last", "transform": "tanh", "dropout_twice": True, "labels": 3}
    row = torch.randint(8, V, (1, 12), generator=torch.Generator().manual_seed(3))
    row[0, [2, 4, 7, 10]] = 5
    marks = torch.tensor([[0] * 6 + [-1] + [1] * 5])
    assert reader.shifted(row, marks)[0].tolist() == [7, *row[0, :5].tolist(), 0, 7, *row[0, 7:11].tolist()]
    with torch.no_grad():
        out = reader(row, segments=marks)
        states = out.hidden[0, [4, 10]].numpy()  # places 2 and 4 end document 0, 7 and 10 document 1
        dense, last = reader.head.dense, reader.head.out
        want = np.tanh(states @ dense.weight.numpy().T + dense.bias.numpy()) @ last.weight.numpy().T + last.bias.numpy()
        assert np.abs(out.logits.numpy() - want).max() < 1e-12
        alone = [row[0, :6], row[0, 7:]]
        assert float((encode(reader, alone) - out.logits).abs().max()) < 1e-12
        assert float((encode(reader, alone[:1]) - out.logits[:1]).abs().max()) < 1e-12


def test_both_stacks_learn_in_training_as_they_answer():
    """Scores do not depend on the mode; the gradient of a class reaches every table, layer and head."""
    reader = orrery.create_model("bart", width=32, depth=2, vocab_size=V, head="span", seed=1)
    tokens = torch.randint(3, V, (3, 12), generator=torch.Generator().manual_seed(0))
    marks = MASK - 1
    trained = reader.train()(tokens, segments=marks).logits
    reader.head.loss(trained, torch.tensor([[1, 3], [0, 6], [2, 2]]), marks).backward()
    reached = {name.partition(".")[0] for name, p in reader.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert reached == {"encoder", "decoder", "head"}
    silent = [name for name, p in reader.named_parameters() if p.grad is None]
    assert silent == []
    with torch.no_grad():
        assert float((reader.eval()(tokens, segments=marks).logits - trained).abs().max()) < 1e-5
        assert reader.head.predict(reader(tokens, segments=marks).logits, marks)[2].max() < 4, "an answer stands in its text"


def test_what_cannot_be_read_is_said():
    def build(**settings):
        return orrery.create_model("t5", width=32, depth=1, vocab_size=V, **settings)

    for settings, said in (
        ({"head": "masked-lm"}, "a whole encoder-decoder has no head 'masked-lm', only classification"),
        ({"head": "classification", "tied": False}, "with a head there are no logits of tokens"),
        ({"labels": 3}, "head is None, so it has no setting 'labels'"),
    ):
        with pytest.raises(ConfigError, match=said):
            build(**settings)
    reader, tokens = build(head="classification", stop=5), torch.full((2, 4), 6)
    with pytest.raises(DataError, match="text 0 of the batch does not hold the token 5"):
        _ = reader(tokens).logits
    with pytest.raises(StateError, match="carries no state"):
        reader(tokens, state=())
    with pytest.raises(ConfigError, match="makes positions, biases and memory itself"):
        reader(tokens, ctx=Context(memory=torch.zeros(2, 4, 32)))
    with pytest.raises(ConfigError, match="has no token types"):
        reader(tokens, types=torch.zeros_like(tokens))
    with pytest.raises(ConfigError, match="answers about texts and writes none"):
        orrery.generate(reader, tokens, 3)
    with pytest.raises(ConfigError, match="a reader needs a head"):
        with_head(reader, None)
    writer = build()
    assert isinstance(writer, EncoderDecoder) and not isinstance(writer, PairReader) and writer.config.head is None


def test_t5_learns_as_theirs_from_the_same_weights_and_batches(tmp_path):
    """Their queries hold the scores' 1/sqrt(K), so AdamW's steps of these are smaller there by as much; all else alike, and so the losses."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `hf`)")
    own = orrery.create_model("t5", width=32, depth=2, vocab_size=V, head="classification", labels=2, start=0, stop=1, seed=0)
    orrery.to_transformers(own, tmp_path)
    hf = double(transformers.T5ForSequenceClassification.from_pretrained(tmp_path)).train()
    queries = {name for name, _ in hf.named_parameters() if name.endswith(("SelfAttention.q.weight", "EncDecAttention.q.weight"))}
    scale = hf.config.d_kv**0.5
    groups = [{"params": [p for name, p in hf.named_parameters() if (name in queries) == apart]} for apart in (False, True)]
    groups[1] |= {"lr": 2e-3 / scale, "eps": 1e-8 * scale}
    given = torch.Generator().manual_seed(1)
    batches = [torch.randint(3, V, MASK.shape, generator=given) for _ in range(2)] * 8
    wanted = [torch.tensor([0, 1, 1]), torch.tensor([1, 0, 1])] * 8
    losses = []
    with AllDouble():
        for model, parts, marks in ((own.double().train(), own.parameters(), {"segments": MASK - 1}), (hf, groups, {"attention_mask": MASK})):
            steps = torch.optim.AdamW(parts, lr=2e-3, weight_decay=0.0)
            losses.append([])
            for tokens, target in zip(batches, wanted, strict=True):
                ended = tokens.scatter(1, MASK.sum(1, keepdim=True) - 1, 1) * MASK
                loss = torch.nn.functional.cross_entropy(model(ended, **marks).logits, target)
                steps.zero_grad()
                loss.backward()
                steps.step()
                losses[-1].append(float(loss.detach()))
    assert losses[0][-1] < 0.8 * losses[0][0] and np.abs(np.subtract(*losses)).max() < 1e-9
