"""Fine-tuning: every kind of task learnt from a table whose rule is known; resuming; what is refused; the card."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import orrery
from orrery.core.errors import ConfigError, CorruptionError, DataError, StorageError
from orrery.core.files import read_json, write_json
from orrery.data.examples import TaskSpec
from orrery.data.records import Row, Table
from orrery.data.tokenizers import ByteTokenizer
from orrery.evaluate.predictions import paired_interval
from orrery.methods import finetune as module
from orrery.methods.baselines import baseline
from orrery.methods.finetune import FinetuneConfig, batch_by_rows, finetune, rate_by_width
from orrery.methods.fitted import load_fitted
from orrery.methods.pretrain import pretrain
from orrery.methods.quantise import quantise
from orrery.methods.starting import start
from orrery.models.encoder import Encoder
from orrery.models.encoder_decoder import PairReader

SMALL = {"width": 32, "depth": 1}
WORDS = ["red", "blue", "cat", "dog", "runs", "sits"]


def table(count=64, seed=0, kind="classification"):
    """Texts of three words; what is asked is whether and where they hold "cat"."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        words = [rng.choice(WORDS) for _ in range(rng.randint(2, 4))]
        cats = words.count("cat")
        label = {
            "classification": "with" if cats else "without",
            "multi-label": ";".join(sorted({w for w in words if w in ("cat", "dog")})),
            "regression": str(10.0 + 5 * cats),
            "ordinal": str(min(cats, 2)),
            "tagging": " ".join("B-ANIMAL" if w in ("cat", "dog") else "O" for w in words),
            "text-to-text": words[0],
        }[kind]
        rows.append(Row(f"t, line {number + 1}", {"text": " ".join(words), "label": label}))
    return Table("t", ("text", "label"), rows)


def config(kind="classification", **more):
    return FinetuneConfig(task=TaskSpec(kind=kind), **{"epochs": 6, "batch": 16, "lr": 1e-2, "patience": 0, **more})


def learn(tmp_path, kind="classification", model="bert", out="run", settings=None, **more):
    train, validation, test = (table(count, seed, kind) for count, seed in ((96, 0), (40, 2), (40, 1)))
    run = {"tokenizer": "wordpiece:64", "settings": {**SMALL, **(settings or {})}, "quiet": True}
    return finetune(model, train, tmp_path / out, config(kind, **more), validation=validation, test=test, **run)


@pytest.mark.parametrize(
    ("kind", "figure", "least"),
    [
        ("classification", "accuracy", 0.9),
        ("multi-label", "micro_f1", 0.9),
        ("regression", "pearson", 0.85),
        ("ordinal", "accuracy", 0.85),
        ("tagging", "span_f1", 0.9),
    ],
)
def test_each_kind_of_task_is_learnt(tmp_path, kind, figure, least):
    settings = {} if kind == "tagging" else {"head.pool": "mean"}
    result = learn(tmp_path, kind, epochs=16, batch=8, lr=4e-3, settings=settings)
    assert result["figures"]["test"][figure]["value"] >= least
    fitted = load_fitted(tmp_path / "run")
    answers = fitted.predict(["red cat runs", "red blue sits"])
    first, second = answers
    if kind == "classification":
        assert (first["label"], second["label"]) == ("with", "without")
        assert sum(first["probabilities"].values()) == pytest.approx(1)
    elif kind == "multi-label":
        assert "cat" in first["labels"] and not second["labels"]
    elif kind == "regression":
        assert first["value"] > second["value"] + 2, "predictions are in the units of the table"
    elif kind == "tagging":
        assert first["tags"] == ["O", "B-ANIMAL", "O"] and second["tags"] == ["O"] * 3
    gap = result["baseline"]["difference"]
    lower = gap["figure"] in ("root_mean_square", "absolute_error")
    assert result["baseline"]["beaten"] == (gap["high"] < 0 if lower else gap["low"] > 0)
    judged = fitted.judge(fitted.encode(table(40, 1, kind)))
    assert judged.figures[figure](judged.items) == result["figures"]["test"][figure]["value"]


def test_text_to_text_is_learnt_by_an_encoder_decoder(tmp_path):
    result = learn(tmp_path, "text-to-text", "t5", epochs=36, batch=8, lr=4e-3)
    assert result["figures"]["test"]["exact_match"]["value"] >= 0.7
    other = result["baseline"]
    assert other["name"] == "the nearest training row's answer" and other["beaten"] == (other["difference"]["low"] > 0)
    assert load_fitted(tmp_path / "run").predict(["dog sits"])[0]["text"] in WORDS


def test_an_encoder_decoder_answers_with_both_stacks(tmp_path):
    """Text and end, without a mark before it where the tokenizer has none; kept, loaded, taken up again, or refused."""
    run = {"tokenizer": "bytes", "settings": SMALL, "quiet": True, "compare_baseline": False}
    result = finetune("t5", table(96), tmp_path / "run", config(epochs=3, batch=8, lr=6e-3), validation=table(20, 2), test=table(40, 1), **run)
    assert result["figures"]["test"]["accuracy"]["value"] >= 0.9
    assert "Reads `text` with its encoder and its decoder, answers" in (tmp_path / "run" / "MODEL_CARD.md").read_text()
    fitted = load_fitted(tmp_path / "run")
    assert isinstance(fitted.model, PairReader) and fitted.model.config.stop == 256
    ids = fitted.encode(Table("t", ("text", "label"), [Row("t, line 1", {"text": "red", "label": "with"})])).ids[0]
    assert bytes(ids[:-1].astype(np.uint8)) == b"red" and ids[-1] == 256
    assert fitted.predict(["red cat runs"])[0]["label"] == "with" and len(fitted.predict([""])) == 1
    again = start(str(tmp_path / "run"), TaskSpec(kind="regression"), table(8, kind="regression"))
    assert isinstance(again.model, PairReader) and again.model.config.head["name"] == "regression"
    with pytest.raises(ConfigError, match="this t5 lost what it writes with to a head"):
        start(str(tmp_path / "run"), TaskSpec(kind="text-to-text"), table(8))
    with pytest.raises(ConfigError, match="lost what it writes with when it was given a head"):
        pretrain(str(tmp_path / "run"), tmp_path / "more")
    with pytest.raises(ConfigError, match="t5 cannot be kept in 8 bits"):
        quantise(tmp_path / "run", tmp_path / "small")


def test_which_stacks_a_task_reads_with(tmp_path):
    """Whole for documents and answers, the encoder for words and for texts apart, unless it is asked otherwise; folders as names."""
    writer = orrery.create_model("bart", vocab_size=257, seed=1, **SMALL)
    ByteTokenizer().save(tmp_path / "tokenizer")
    orrery.models.storage.save(writer, tmp_path / "w", {f"tokenizer/{f.name}": f.read_bytes() for f in (tmp_path / "tokenizer").iterdir()})
    pair = {"pair": "text", "names": ("with", "without")}
    cases = [
        (TaskSpec(names=("with", "without")), {}, PairReader),
        (TaskSpec(**pair), {}, PairReader),
        (TaskSpec(**pair, apart=True), {}, Encoder),
        (TaskSpec(kind="question-answering", pair="text"), {}, PairReader),
        (TaskSpec(kind="tagging", names=("B-ANIMAL", "O")), {}, Encoder),
        (TaskSpec(kind="tagging", names=("B-ANIMAL", "O")), {"frame": "encoder-decoder"}, PairReader),
        (TaskSpec(names=("with", "without")), {"frame": "encoder"}, Encoder),
    ]
    for spec, settings, frame in cases:
        drawn = start("bart", spec, table(8), tokenizer="bytes", settings={**SMALL, **settings}).model
        begun = start(str(tmp_path / "w"), spec, table(8), settings=settings).model
        assert type(drawn) is type(begun) is frame, (spec, settings)
        assert drawn.head.config.labels == begun.head.config.labels == 2
        body = begun.encoder if frame is PairReader else begun
        assert torch.equal(body.blocks[0].channel.wide.weight, writer.encoder.blocks[0].channel.wide.weight)
    with pytest.raises(ConfigError, match="a task is read in the frame encoder or encoder-decoder, not 'decoder'"):
        start("bart", cases[0][0], table(8), tokenizer="bytes", settings={"frame": "decoder"})
    with pytest.raises(ConfigError, match="needs a model with both stacks; take t5 or bart"):
        start("bert", cases[0][0], table(8), tokenizer="bytes", settings={**SMALL, "frame": "encoder-decoder"})
    for source in ("bart", str(tmp_path / "w")):
        with pytest.raises(ConfigError, match="text-to-text writes with both stacks"):
            start(source, TaskSpec(kind="text-to-text"), table(8), tokenizer="bytes", settings={"frame": "encoder"})


def test_recurrent_layers_read_both_ways_and_a_crf_tags(tmp_path):
    settings = {"head.crf": True, "head.scheme": "bio"}
    result = learn(tmp_path, "tagging", "gru", epochs=8, settings=settings)
    assert result["figures"]["test"]["span_f1"]["value"] >= 0.9
    fitted = load_fitted(next(tmp_path.rglob("task.json")).parent)
    assert fitted.predict([""]) == [{"tags": []}], "a text without a word is an example like any other"
    fitted.spec = fitted.spec.replace(length=8)
    (answer,) = fitted.predict(["the dog sits on the mat"], truncate=True)
    assert len(answer["tags"]) == 6 and answer["tags"][-3:] == ["O"] * 3, "words that are cut off have a tag, too"


def test_a_language_model_of_ours_becomes_a_classifier(tmp_path):
    lm = orrery.create_model("transformer", vocab_size=257, seed=1, **SMALL)
    ByteTokenizer().save(tmp_path / "tokenizer")
    files = {f"tokenizer/{f.name}": f.read_bytes() for f in (tmp_path / "tokenizer").iterdir()}
    from orrery.models.storage import save

    save(lm, tmp_path / "lm", files)
    result = finetune(
        str(tmp_path / "lm"), table(96), tmp_path / "run", config(epochs=10), test=table(40, 1), quiet=True
    )
    assert result["pretrained"] and result["figures"]["test"]["accuracy"]["value"] >= 0.85
    fitted = load_fitted(tmp_path / "run")
    assert fitted.model.head.config.pool == "last"
    wanted, settings = config("text-to-text", epochs=1), {"lm": str(tmp_path / "lm"), "frozen": True}
    small = {"quiet": True, "compare_baseline": False}
    told = finetune("lamate", table(16, kind="text-to-text"), tmp_path / "told", wanted, settings=settings, **small)
    writer = load_fitted(tmp_path / "told")
    assert told["pretrained"] and torch.equal(writer.model.lm.embed.weight, lm.embed.weight), "its encoder is that language model"
    assert isinstance(writer.predict(["dog sits"])[0]["text"], str)
    for kind, more, words in (
        ("classification", settings, "lamate writes texts"),
        ("text-to-text", {}, "begins with a trained language model"),
        ("text-to-text", {"lm": str(tmp_path / "told" / "weights")}, "holds no decoder language model"),
    ):
        with pytest.raises(ConfigError, match=words):
            finetune("lamate", table(16, kind=kind), tmp_path / "no", config(kind), settings=more, **small)


def test_pairs_of_texts_are_told_apart(tmp_path):
    def pairs(seed):
        rng = random.Random(seed)
        rows = []
        for number in range(120):
            a, b = rng.choice(WORDS[:2]), rng.choice(WORDS[:2])
            rows.append(Row(f"p, line {number}", {"text": a, "other": b, "label": "same" if a == b else "other"}))
        return Table("p", ("text", "other", "label"), rows)

    spec = TaskSpec(pair="other")
    settings = config(epochs=20, lr=3e-3).replace(task=spec)
    result = finetune(
        "bert", pairs(0), tmp_path / "run", settings, test=pairs(1), tokenizer="bytes", settings=SMALL, quiet=True
    )
    assert result["figures"]["test"]["accuracy"]["value"] >= 0.9
    with pytest.raises(DataError, match="compares two texts"):
        load_fitted(tmp_path / "run").predict(["red"])


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_bi_encoder_reads_both_texts_apart(tmp_path, kind):
    def pairs(seed, count=120):
        rng = random.Random(seed)
        rows = []
        for number in range(count):
            a, b = rng.choice(WORDS[:3]), rng.choice(WORDS[:3])
            label = ("same" if a == b else "other") if kind == "classification" else str(5.0 if a == b else 1.0)
            rows.append(Row(f"p, line {number}", {"text": a, "other": b, "label": label}))
        return Table("p", ("text", "other", "label"), rows)

    settings = config(epochs=10, lr=3e-3).replace(task=TaskSpec(kind=kind, pair="other", apart=True))
    run = {"tokenizer": "wordpiece:64", "settings": SMALL, "quiet": True}
    result = finetune("bert", pairs(0), tmp_path / "run", settings, test=pairs(1, 40), **run)
    figure = "accuracy" if kind == "classification" else "pearson"
    assert result["figures"]["test"][figure]["value"] >= 0.9
    fitted = load_fitted(tmp_path / "run")
    assert fitted.model.head.config.join == ("features" if kind == "classification" else "cosine")
    examples = fitted.encode(pairs(1, 40))
    assert fitted.model.config.embedding.types == 2 or examples.types is not None
    from orrery.data.labelled import collate

    batch = collate(examples, [0])
    assert sorted(set(batch["segments"][0].tolist())) == [0, 1] and "types" not in batch
    answers = fitted.predict(pairs(2, 5))
    assert len(answers) == 5 and set(answers[0]) == ({"label", "probabilities"} if kind == "classification" else {"value"})


def test_a_body_without_token_types_takes_pairs_too(tmp_path):
    from orrery.models.storage import save

    body = orrery.create_model("distilbert", vocab_size=257, seed=1, **SMALL)
    ByteTokenizer().save(tmp_path / "t")
    save(body, tmp_path / "body", {f"tokenizer/{f.name}": f.read_bytes() for f in (tmp_path / "t").iterdir()})
    rows = [Row(f"p, line {n}", {"text": "a", "other": "ab"[n % 2], "label": str(n % 2)}) for n in range(24)]
    made = Table("p", ("text", "other", "label"), rows)
    result = finetune(str(tmp_path / "body"), made, tmp_path / "run", config(epochs=1).replace(task=TaskSpec(pair="other")), quiet=True)
    assert result["status"] == "done" and load_fitted(tmp_path / "run").encode(made).types is None


def test_interrupted_and_continued_equals_uninterrupted(tmp_path, monkeypatch):
    whole = learn(tmp_path, out="whole", epochs=4, settings={"dropout": 0.1})
    after = iter([False] * 9 + [True] * 100)  # in the second epoch of six steps

    class Asked:
        requested = property(lambda self: next(after))

    import contextlib

    with monkeypatch.context() as patch:
        patch.setattr(module, "interruptible", lambda: contextlib.nullcontext(Asked()))
        assert learn(tmp_path, out="cut", epochs=4, settings={"dropout": 0.1})["status"] == "interrupted"
    continued = learn(tmp_path, out="cut", epochs=4, settings={"dropout": 0.1})
    assert continued["history"] == whole["history"]
    a, b = (load_fitted(tmp_path / name).model.state_dict() for name in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert learn(tmp_path, out="cut", epochs=4, settings={"dropout": 0.1})["figures"] == whole["figures"]
    with pytest.raises(ConfigError, match="holds another run"):
        learn(tmp_path, out="cut", epochs=5, settings={"dropout": 0.1})


def test_the_card_says_what_was_measured(tmp_path):
    result = learn(tmp_path, epochs=1)
    card = (tmp_path / "run" / "MODEL_CARD.md").read_text()
    figure = result["figures"]["test"]["accuracy"]
    assert f"{figure['value']:.4f} ({figure['low']:.4f} to {figure['high']:.4f})" in card
    assert ("It beats" in card) == result["baseline"]["beaten"] and "40 rows only" in card
    assert "logistic regression on a bag of words" in card and "`with`, `without`" in card


def test_a_bag_of_words_is_a_baseline_worth_beating():
    sklearn = pytest.importorskip("sklearn.linear_model")
    train, held = table(200, 0), table(100, 1)
    spec = TaskSpec(names=("with", "without"))
    name, given = baseline(spec, train, held)
    wanted = np.array([spec.names.index(label) for label in held.column("label")])
    assert "logistic" in name and (given["predicted"] == wanted).mean() == 1
    from orrery.methods.baselines import BagOfWords, _fit

    features = BagOfWords(spec, train)
    x, y = features(train), torch.tensor([spec.names.index(label) for label in train.column("label")])
    ours = _fit("classification", x, y, torch.zeros(x.shape[1] + 1, 2, dtype=torch.float64), 1e-3)
    theirs = sklearn.LogisticRegression(C=1 / (2e-3 * 200) / 2 * 2, tol=1e-9, max_iter=5000).fit(
        x.to_dense().numpy(), y.numpy()
    )
    difference = (ours[:-1, 1] - ours[:-1, 0]).numpy()  # two columns share what theirs has in one: half the penalty
    assert np.corrcoef(difference, theirs.coef_[0])[0, 1] > 0.999


@pytest.mark.parametrize(
    ("rows", "kind", "words"),
    [
        ([("cat", "x")] * 8, "classification", "only the label 'x'"),
        ([("a b", "O I-X"), ("c", "B-X")] * 4, "tagging", "word 2: the tag breaks the scheme bio"),
        ([("w " * 5000, "x"), ("b", "y")] * 4, "classification", "has 10002 tokens, but the model reads 512"),
    ],
)
def test_tables_that_cannot_be_learnt_leave_no_folder(tmp_path, rows, kind, words):
    made = Table(
        "t", ("text", "label"), [Row(f"t, line {n}", {"text": t, "label": y}) for n, (t, y) in enumerate(rows, 1)]
    )
    with pytest.raises(DataError, match=words):
        finetune("bert", made, tmp_path / "run", config(kind), tokenizer="bytes", settings=SMALL, quiet=True)
    assert not (tmp_path / "run").exists()


def test_what_is_allowed_is_counted(tmp_path):
    made = table(40, 0, "tagging")
    made.rows[3].values.update(text="red cat " * 300, label="O I-ANIMAL " * 300)
    settings = config("tagging", truncate=True, repair=True, epochs=1)
    result = finetune("bert", made, tmp_path / "run", settings, tokenizer="bytes", settings=SMALL, quiet=True)
    assert any("1 row was cut to 512" in note for note in result["notes"])
    assert any("1 row with tags that break the scheme" in note for note in result["notes"])
    unseen = table(20, 5, "tagging")
    unseen.rows[0].values["label"] = unseen.rows[0].values["label"].replace("O", "B-NEW")
    fitted = load_fitted(tmp_path / "run")
    assert any("never saw" in note for note in fitted.judge(fitted.encode(unseen)).notes)


def test_unbalanced_classes_are_named_and_can_weigh_alike(tmp_path):
    made = table(60)
    for number, row in enumerate(made.rows):
        row.values["label"] = "rare" if number % 10 == 0 else "often"
    run = {"tokenizer": "bytes", "settings": SMALL, "quiet": True, "compare_baseline": False}
    plain = finetune("bert", made, tmp_path / "a", config(epochs=1), **run)
    assert any("times the smallest" in note for note in plain["notes"])
    even = finetune("bert", made, tmp_path / "b", config(epochs=1, balance=True), **run)
    assert not any("times the smallest" in note for note in even["notes"])


def test_a_damaged_or_missing_model_is_said(tmp_path):
    with pytest.raises(StorageError, match="holds no fine-tuned model"):
        load_fitted(tmp_path)
    learn(tmp_path, epochs=1)
    file = tmp_path / "run" / "weights" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(CorruptionError):
        load_fitted(tmp_path / "run")
    with pytest.raises(ConfigError, match="no encoder-decoder"):
        finetune(
            "bert",
            table(40, 0, "text-to-text"),
            tmp_path / "t",
            config("text-to-text"),
            tokenizer="bytes",
            settings=SMALL,
            quiet=True,
        )


def test_rules_where_nothing_is_given():
    assert [batch_by_rows(rows) for rows in (50, 400, 1000, 9600)] == [8, 10, 25, 32]
    rates = {width: rate_by_width(SimpleNamespace(config=SimpleNamespace(width=width)), True) for width in (64, 96, 256, 768)}
    assert rates == pytest.approx({64: 1e-3, 96: 1e-3, 256: 5e-5 * 3**1.5, 768: 5e-5})
    assert rate_by_width(SimpleNamespace(config=SimpleNamespace(width=128)), False) == 1e-3


def test_a_translation_is_held_against_the_nearest_row_or_the_source():
    spec = TaskSpec(kind="text-to-text")

    def of(pairs):
        return Table("t", ("text", "label"), [Row("", {"text": a, "label": b}) for a, b in pairs])

    train = of([("a red dog", "ein roter Hund"), ("a blue cat", "eine blaue Katze"), ("two boys run", "zwei Jungen rennen")])
    other = of([("two boys sit", "zwei Jungen sitzen"), ("the red dog", "der rote Hund")])
    name, given = baseline(spec, train, other)
    assert name == "the nearest training row's answer" and given["texts"] == ["zwei Jungen rennen", "ein roter Hund"]
    assert baseline(spec, train, of([("x y", "x y")])) == ("the source, copied", {"texts": ["x y"]})


def test_a_model_reads_as_far_as_it_knows(tmp_path):
    for model, reads in (("bert", 6), ("gru", 8192)):
        train = table(16)
        settings = {"width": 16, "depth": 1}
        config = FinetuneConfig(epochs=1, batch=16)
        result = finetune(model, train, tmp_path / model, config, tokenizer="wordpiece:64", settings=settings, quiet=True, compare_baseline=False)
        assert result["task"]["length"] == reads, "drawn positions end at the longest text; recurrent layers have none"
    assert load_fitted(tmp_path / "gru").predict(["cat " * 40])[0]["label"]
    with pytest.raises(DataError, match="42 tokens, but the model reads 6"):
        load_fitted(tmp_path / "bert").predict(["cat " * 40])
    result = finetune(tmp_path / "bert", table(16), tmp_path / "on", FinetuneConfig(epochs=1, batch=16), quiet=True, compare_baseline=False)
    assert result["task"]["length"] == 512, "what is handed on as trained is trusted as far as its positions go"


def test_one_row_shows_no_difference():
    one = {"true": np.array([1]), "predicted": np.array([1])}
    gap = paired_interval(lambda items: float(np.mean(items["true"] == items["predicted"])), one, {**one, "predicted": np.array([0])})
    assert (gap.estimate, gap.low, gap.high) == (1.0, -np.inf, np.inf)


@pytest.mark.parametrize(
    ("name", "settings", "std"),
    [
        ("t5", {}, 0.05),
        ("t5-v1.1", {}, 0.05),
        ("t5", {"frame": "encoder"}, 0.05),
        ("t5-encoder", {}, 0.05),
        ("t5", {"encoder.embedding.std": 0.3, "decoder.embed_std": 0.3}, 0.3),
        ("bart", {}, 0.02),
        ("bert", {}, 0.02),
    ],
)
def test_a_drawn_embedding_is_within_reach_of_its_steps(name, settings, std):
    model = start(name, TaskSpec(names=("with", "without")), table(8), tokenizer="bytes", settings={**SMALL, **settings}).model
    assert float(model.embed.weight.detach().std()) == pytest.approx(std, rel=0.1)


def test_a_model_of_transformers_reads_pairs_as_there_and_older_folders_as_they_learnt(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra `hf`)")
    vocab = {piece: rank for rank, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcĠ"])}
    theirs = transformers.RobertaTokenizerFast(vocab=vocab, merges=[])
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 20}
    ids = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    transformers.RobertaForMaskedLM(transformers.RobertaConfig(vocab_size=len(vocab), **sizes, **ids)).save_pretrained(tmp_path / "hf")
    theirs.save_pretrained(tmp_path / "hf")
    rows = [Row(f"r{n}", {"text": "ab c"[: n % 4 + 1], "other": "ca b", "label": "xy"[n % 2]}) for n in range(12)]
    pairs = Table("pairs", ("text", "other", "label"), rows)
    config = FinetuneConfig(task=TaskSpec(pair="other"), epochs=1, batch=8)
    finetune(tmp_path / "hf", pairs, tmp_path / "run", config, validation=pairs, compare_baseline=False, quiet=True)
    wanted = [theirs(row.values["text"], row.values["other"])["input_ids"] for row in rows]
    assert [one.tolist() for one in load_fitted(tmp_path / "run").read(pairs).ids] == wanted
    task = read_json(tmp_path / "run" / "task.json")
    assert task["task"].pop("own") is True
    write_json(tmp_path / "run" / "task.json", task)
    older = [row[: row.index(2)] + row[row.index(2) + 1 :] for row in wanted]
    assert [one.tolist() for one in load_fitted(tmp_path / "run").read(pairs).ids] == older


@pytest.mark.parametrize(("head", "kind", "settings", "share"), [
    ({}, "classification", {}, 0.2), ({}, "tagging", {}, 0.2), ({}, "classification", {"head.dropout": 0.1}, 0.1),
    ({"head": "classification", "head.dropout": 0.3}, "regression", {}, 0.3),
])  # fmt: skip
def test_a_drawn_head_has_the_dropout_of_its_body(head, kind, settings, share):
    body = orrery.create_model("bert", width=16, depth=1, vocab_size=257, dropout=0.2, **head)
    found = start(body, TaskSpec(kind=kind, names=("a", "b")), table(4, kind=kind), tokenizer=ByteTokenizer(), settings=settings)
    assert found.model.head.config.dropout == share
