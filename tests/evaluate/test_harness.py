"""The adapter to lm-evaluation-harness: a local task evaluated offline, and every answer beside the plain computation."""

from __future__ import annotations

import json

import pytest
import torch

import orrery
from orrery.core.errors import ConfigError
from orrery.data.tokenizers import ByteTokenizer
from orrery.evaluate.harness import harness_model
from orrery.evaluate.minimal_pairs import sentence_scores

lm_eval = pytest.importorskip("lm_eval", reason="the extra `eval` (lm-evaluation-harness) is not installed")

PAIRS = [("The cat sits.", "The cat sit."), ("Who ran?", "Who run?"), ("A dog barks.", "A dogs barks."), ("x y", "y x")]


@pytest.fixture(scope="module")
def model():
    return orrery.create_model("transformer", width=32, depth=1, vocab_size=257, seed=1).eval()


@pytest.fixture(scope="module")
def asked(model):
    return harness_model(model, ByteTokenizer(), length=24, tokens=64)


def instances(*arguments, kind="loglikelihood"):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def plain(model, ids, count):
    """Log-probability of the last `count` ids and whether each is the likeliest."""
    with torch.no_grad():
        log = model(torch.tensor([ids[:-1]])).logits[0].double().log_softmax(-1)
    wanted = range(len(ids) - 1 - count, len(ids) - 1)
    return sum(float(log[t, ids[t + 1]]) for t in wanted), all(int(log[t].argmax()) == ids[t + 1] for t in wanted)


def test_likelihoods_are_the_model_s(model, asked):
    encode, doc = ByteTokenizer().encode, ByteTokenizer().doc_id
    requests = [("The cat", " sits"), ("", "abc"), ("a " * 20, "end"), ("Who ", "ran?")]
    found = asked.loglikelihood(instances(*requests), disable_tqdm=True)
    for (context, continuation), answer in zip(requests, found, strict=True):
        ids = [doc, *encode(context + continuation).tolist()]
        stripped = len(context) - len(context.rstrip())
        expected = plain(model, ids[-25:], len(encode(continuation)) + stripped)
        assert answer == (pytest.approx(expected[0], abs=1e-3), expected[1])
    likeliest = chr(int(model(torch.tensor([[doc, *encode("ab").tolist()]])).logits[0, -1, :128].argmax()))
    row = model(torch.tensor([[doc, *encode("ab").tolist()]])).logits[0, -1]
    (greedy,) = asked.loglikelihood(instances(("ab", likeliest)), disable_tqdm=True)
    assert greedy[1] == (int(row.argmax()) < 128)


def test_rolling_covers_every_token_once_in_the_harness_s_windows(model, asked):
    from lm_eval.utils import get_rolling_token_windows

    text = "The cats that the dog saw ran home, all of them but one."
    ids = ByteTokenizer().encode(text).tolist()
    before = [ByteTokenizer().doc_id, *ids]
    windows = get_rolling_token_windows(ids, before[0], max_seq_len=24, context_len=1)
    expected = sum(plain(model, [*read, wanted[-1]], len(wanted))[0] for read, wanted in windows)
    assert len(ids) % 24 and asked.loglikelihood_rolling(instances((text,), kind="loglikelihood_rolling")) == [
        pytest.approx(expected, abs=1e-3)
    ]


def test_generation_stops_where_it_is_told(model, asked):
    prompts = ["The cat", "Who", "Another"]
    rules = [
        {"until": ["\n"], "max_gen_toks": 6},
        {"until": ["\n"], "max_gen_toks": 6},
        {"until": [], "max_gen_toks": 4},
    ]
    found = asked.generate_until(instances(*zip(prompts, rules, strict=True), kind="generate_until"))
    for prompt, rule, text in zip(prompts, rules, found, strict=True):
        own = orrery.generate(
            model, prompt, rule["max_gen_toks"], temperature=0.0, stop=rule["until"], tokenizer=ByteTokenizer()
        )
        assert text == own and "\n" not in text
    with pytest.raises(ConfigError, match="24 new tokens leave no room for a prompt in the 24"):
        asked.generate_until(instances(("The cat", {"max_gen_toks": 24}), kind="generate_until"))
    (long,) = asked.generate_until(instances(("The cat sat on the mat, and", {"until": []}), kind="generate_until"))
    cut = orrery.generate(model, "the mat, and"[-11:], 12, temperature=0.0, tokenizer=ByteTokenizer())
    assert long == cut, "where no number is asked for, half of what is read is left to the prompt"
    with pytest.raises(ConfigError, match="'num_beams'"):
        asked.generate_until(instances(("a", {"num_beams": 3}), kind="generate_until"))


def test_a_local_task_is_evaluated_offline(model, tmp_path, monkeypatch):
    from lm_eval.tasks import TaskManager  # the list of all their tasks, which takes seconds to read, is not needed

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    rows = [{"good": good, "bad": bad} for good, bad in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "task": "pairs_here", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "pairs.jsonl")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "", "doc_to_target": 0, "target_delimiter": "",
        "doc_to_choice": "{{[good, bad]}}", "num_fewshot": 0, "metric_list": [{"metric": "acc"}],
    }  # fmt: skip
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    found = lm_eval.simple_evaluate(
        harness_model(model, ByteTokenizer()),
        tasks=[config],
        bootstrap_iters=0,
        log_samples=True,
        task_manager=TaskManager(include_defaults=False),
    )
    scores = sentence_scores(model, ByteTokenizer(), [s for pair in PAIRS for s in pair])
    right = [a > b for a, b in zip(scores[::2], scores[1::2], strict=True)]
    assert found["results"]["pairs_here"]["acc,none"] == pytest.approx(sum(right) / len(right))
    assert len(found["samples"]["pairs_here"]) == len(PAIRS)


def test_models_that_predict_no_next_token_are_refused():
    with pytest.raises(ConfigError, match="predicts no next token"):
        harness_model(orrery.create_model("bert", width=32, depth=1, vocab_size=260), ByteTokenizer())
