"""Synthetic tasks: an independent solver reaches the optimum, a guesser chance; streams are pure and apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orrery.core.errors import ConfigError, UnknownNameError
from orrery.core.registry import names
from orrery.data import create_task
from orrery.data.state_tracking import multiplication_table
from orrery.data.task import UNSCORED, accuracy

SPECS = [
    "mqar",
    "mqar(pairs=4, length=64, vocab=40, filler=blank)",
    "mqar(pairs=64, length=512, vocab=8192)",
    "mqar(pairs=1, length=4, vocab=4)",
    *(
        "state-tracking",
        "state-tracking(group=parity, length=1)",
        "state-tracking(group=A5)",
        "state-tracking(group=A4xZ5, length=17)",
        "passkey",
        "passkey(length=5, digits=2, distance=0)",
        "passkey(length=100, distance=40, filler=repeat)",
        "passkey(length=200, filler=blank)",
    ),
]


@pytest.mark.parametrize("spec", SPECS)
def test_batches_have_the_stated_shape_and_range(spec: str):
    task = create_task(spec)
    for batch in (task.batch(3, 5, seed=1), task.test_batch(3, 5)):
        assert set(batch) == {"tokens", "targets"}
        for value in batch.values():
            assert value.shape == (5, task.length)
            assert value.dtype == torch.int64
        assert batch["tokens"].min() >= 0 and batch["tokens"].max() < task.vocab_size
        scored = batch["targets"][batch["targets"] != UNSCORED]
        assert len(scored) and scored.min() >= 0 and scored.max() < task.vocab_size
    assert 0 < task.chance <= task.optimum <= 1


@pytest.mark.parametrize("spec", SPECS)
def test_batches_are_a_pure_function_of_seed_and_step(spec: str):
    task, other = create_task(spec), create_task(spec)
    later = [task.arrays(step, 32, 7) for step in (5, 0, 900_000)]
    again = [other.arrays(step, 32, 7) for step in (900_000, 0, 5)][::-1]
    for one, two in zip(later, again, strict=True):
        assert all(np.array_equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("spec", ["mqar", "state-tracking", "passkey"])
def test_no_example_is_shared_by_steps_seeds_or_the_test_set(spec: str):
    task = create_task(spec)
    batches = [task.arrays(step, 64, seed)["tokens"] for seed in (0, 1, 2) for step in range(3)]
    batches += [task.test_arrays(number, 64)["tokens"] for number in range(3)]
    rows = {row.tobytes() for batch in batches for row in batch}
    assert len(rows) == 64 * len(batches)


def recall(tokens: list[int], targets: list[int], pairs: int) -> list[int]:
    """The task done with a dictionary: remember the pairs, look up every key that comes again."""
    memory = dict(zip(tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
    return [memory.get(token, -1) if place >= 2 * pairs else -1 for place, token in enumerate(tokens)]


@pytest.mark.parametrize("spec", SPECS[:4])
def test_a_dictionary_solves_recall_and_answers_nothing_else(spec: str):
    task = create_task(spec)
    pairs, half = task.config.pairs, task.vocab_size // 2
    batch = task.arrays(0, 40, 1)
    for tokens, targets in zip(batch["tokens"].tolist(), batch["targets"].tolist(), strict=True):
        answers = recall(tokens, targets, pairs)
        assert [answer if answer >= 0 else UNSCORED for answer in answers] == targets
        keys, values = tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert all(1 <= key < half for key in keys) and all(half <= value < task.vocab_size for value in values)
        queries = [place for place, target in enumerate(targets) if target != UNSCORED]
        assert len(queries) == pairs
        assert all(place >= 2 * pairs and place % 2 == 0 for place in queries)
        assert sorted(tokens[place] for place in queries) == sorted(keys)


def test_blank_filler_is_blank_and_random_filler_uses_the_vocabulary():
    blank = create_task("mqar(filler=blank)").arrays(0, 200, 0)
    filler = np.ones_like(blank["tokens"], dtype=bool)
    filler[:, :16] = False
    filler &= blank["targets"] == UNSCORED
    assert (blank["tokens"][filler] == 0).all()
    random = create_task("mqar").arrays(0, 2000, 0)
    filler = (np.arange(48) >= 16) & (random["targets"] == UNSCORED)
    counts = np.bincount(random["tokens"][filler], minlength=64)
    expected = np.full(64, filler.sum() / 64.0)
    keys = np.arange(1, 32)  # 8 of the 31 keys are in use, so each is left to the filler in 23 of 31 examples
    expected[keys] *= (64 / 56) * (23 / 31)
    expected[np.setdiff1d(np.arange(64), keys)] *= 64 / 56
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 4 * np.sqrt(2 * 63)


@pytest.mark.parametrize("power", [0.01, 0.5, 1.0])
def test_gaps_follow_the_power_law(power: float):
    task = create_task("mqar", pairs=1, length=42, vocab=16, power=power)
    targets = task.arrays(0, 20_000, 0)["targets"]
    places = (np.argmax(targets != UNSCORED, axis=1) - 2) // 2
    weights = np.arange(1, 21) ** (power - 1.0)
    expected = 20_000 * weights / weights.sum()
    chi = ((np.bincount(places, minlength=20) - expected) ** 2 / expected).sum()
    assert chi < 43.8  # chi-square, 19 degrees of freedom, p = 0.001


def test_gaps_of_several_queries_are_drawn_one_after_another():
    """P(first = i, second = j) = w_i / W * w_j / (W - w_i), compared with the counts."""
    task = create_task("mqar", pairs=2, length=12, vocab=16, power=0.01)
    batch = task.arrays(0, 30_000, 0)
    tokens, targets = batch["tokens"], batch["targets"]
    places = [
        np.argmax((tokens[:, 4:] == tokens[:, [2 * key]]) & (targets[:, 4:] != UNSCORED), axis=1) // 2 for key in (0, 1)
    ]
    counts = np.zeros((4, 4))
    np.add.at(counts, (places[0], places[1]), 1)
    weights = np.arange(1, 5) ** -0.99
    chi = 0.0
    for first, second in itertools.permutations(range(4), 2):
        expected = 30_000 * weights[first] / weights.sum() * weights[second] / (weights.sum() - weights[first])
        chi += (counts[first, second] - expected) ** 2 / expected
    assert np.trace(counts) == 0
    assert chi < 31.3  # chi-square, 11 degrees of freedom, p = 0.001


def test_guessing_a_shown_value_scores_chance():
    task = create_task("mqar")
    batch = task.arrays(0, 4000, 0)
    guesses = np.take_along_axis(
        batch["tokens"][:, 1:16:2], np.random.default_rng(0).integers(0, 8, (4000, 48)), axis=1
    )
    assert abs(accuracy(guesses, batch["targets"]) - task.chance) < 4 * np.sqrt(0.125 * 0.875 / 32_000)


def retrieve(tokens: list[int], digits: int) -> list[int]:
    """The passkey by reading: what follows the mark, named at the end."""
    place = tokens.index(10)
    return [UNSCORED] * (len(tokens) - digits) + tokens[place + 1 : place + 1 + digits]


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec.startswith("passkey")])
def test_a_reader_finds_every_passkey_and_noise_gives_none_away(spec: str):
    task = create_task(spec)
    digits, distance = task.config.digits, task.config.distance
    batch, distances = task.arrays(0, 300, 1), set()
    for tokens, targets in zip(batch["tokens"].tolist(), batch["targets"].tolist(), strict=True):
        assert retrieve(tokens, digits) == targets
        place, ask = tokens.index(10), len(tokens) - digits
        assert tokens[ask] == 11 and tokens.count(10) == tokens.count(11) == 1
        assert tokens[ask + 1 :] == targets[ask : len(tokens) - 1]  # what stands behind ASK are the digits before
        noise = tokens[:place] + tokens[place + digits + 1 : ask]
        assert all(token >= 12 for token in noise)
        distances.add(ask - place - digits - 1)
    assert distances == {distance} if distance >= 0 else len(distances) > 20
    answers = batch["targets"][batch["targets"] != UNSCORED]
    counts, expected = np.bincount(answers, minlength=10), len(answers) / 10
    assert ((counts - expected) ** 2 / expected).sum() < 33.7  # chi-square, 9 degrees of freedom, p = 1e-4


def permutations_of(group: str) -> list[tuple[int, ...]]:
    """Elements of S_n and A_n in lexicographic order, A_n by decomposition into transpositions."""
    degree = int(group[1:])
    every = list(itertools.permutations(range(degree)))
    return every if group[0] == "S" else [element for element in every if _transpositions(element) % 2 == 0]


def _transpositions(element: tuple[int, ...]) -> int:
    work, swaps = list(element), 0
    for place in range(len(work)):
        while work[place] != place:
            target = work[place]
            work[place], work[target] = work[target], work[place]
            swaps += 1
    return swaps


@pytest.mark.parametrize("group", ["S3", "S4", "A4", "A5", "S5"])
def test_moving_objects_about_gives_the_targets(group: str):
    elements = permutations_of(group)
    batch = create_task("state-tracking", group=group, length=20).arrays(0, 6, 3)
    for tokens, targets in zip(batch["tokens"].tolist(), batch["targets"].tolist(), strict=True):
        where = list(range(len(elements[0])))  # where each object is; a token moves what is at i to element[i]
        for token, target in zip(tokens, targets, strict=True):
            where = [elements[token][place] for place in where]
            assert elements.index(tuple(where)) == target


def test_parity_and_cyclic_groups_are_sums():
    batch = create_task("state-tracking(group=parity, length=40)").arrays(0, 8, 0)
    assert np.array_equal(batch["targets"], np.cumsum(batch["tokens"], axis=1) % 2)
    batch = create_task("state-tracking(group=Z60)").arrays(0, 8, 0)
    assert np.array_equal(batch["targets"], np.cumsum(batch["tokens"], axis=1) % 60)


@pytest.mark.parametrize(
    ("group", "order", "commutative"),
    [
        ("parity", 2, True),
        ("Z60", 60, True),
        ("S3", 6, False),
        ("A4", 12, False),
        ("A4xZ5", 60, False),
        ("A5", 60, False),
        ("S5", 120, False),
        ("Z2xZ3", 6, True),
    ],
)
def test_tables_are_groups(group: str, order: int, commutative: bool):
    table = multiplication_table(group)
    assert table.shape == (order, order)
    assert np.array_equal(table[0], np.arange(order)) and np.array_equal(table[:, 0], np.arange(order))
    assert np.array_equal(np.sort(table, axis=1), np.tile(np.arange(order), (order, 1)))  # inverses exist
    random = np.random.default_rng(0)
    a, b, c = random.integers(0, order, (3, 500))
    assert np.array_equal(table[table[a, b], c], table[a, table[b, c]])
    assert (np.array_equal(table, table.T)) == commutative


def test_products_are_uniform_so_that_guessing_scores_chance():
    task = create_task("state-tracking(group=S3, length=8)")
    targets = task.arrays(0, 20_000, 0)["targets"]
    for place in range(8):
        counts = np.bincount(targets[:, place], minlength=6)
        assert ((counts - 20_000 / 6) ** 2 / (20_000 / 6)).sum() < 25.7  # chi-square, 5 degrees of freedom, p = 1e-4
    assert task.chance == 1 / 6


@given(st.integers(1, 12), st.integers(0, 40), st.integers(0, 60))
def test_any_allowed_recall_setting_gives_solvable_examples(pairs: int, longer: int, wider: int):
    task = create_task("mqar", pairs=pairs, length=4 * pairs + 2 * longer, vocab=2 * pairs + 2 + wider)
    batch = task.arrays(0, 3, 0)
    for tokens, targets in zip(batch["tokens"].tolist(), batch["targets"].tolist(), strict=True):
        assert [answer if answer >= 0 else UNSCORED for answer in recall(tokens, targets, pairs)] == targets


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mqar(pairs=0)", "at least one pair"),
        ("mqar(length=47)", "even length"),
        ("mqar(pairs=13)", "need a length of 52"),
        ("mqar(vocab=17)", "need a vocabulary of 18"),
        ("mqar(power=0)", "must be positive"),
        ("mqar(filler=noise)", "random, blank"),
        ("mqar(pears=3)", "Did you mean 'pairs'"),
        ("mqar(pairs=3", "not of the form"),
        ("mqar(pairs)", "key=value"),
        ("passkey(length=10)", "need a length of 11"),
        ("passkey(length=64, distance=60)", "need a length of 71"),
        ("passkey(vocab=12)", "at least 13"),
        ("passkey(distance=-2)", "or -1 for anywhere"),
        ("passkey(filler=noise)", "random, blank, repeat"),
        ("passkey(digits=0)", "at least one digit"),
        ("state-tracking(length=0)", "at least 1"),
        ("state-tracking(group=M11)", "is not a group"),
        ("state-tracking(group=S9)", "362880 elements"),
        ("state-tracking(group=S1)", "1 elements"),
        ("state-tracking(group=Z4xx)", "is not a group"),
    ],
)
def test_impossible_settings_are_refused(spec: str, message: str):
    with pytest.raises(ConfigError, match=message):
        create_task(spec)


def test_unknown_tasks_and_bad_numbers_are_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'mqar'"):
        create_task("mqarr")
    for arguments in ((0, 0, 0), (-1, 4, 0)):
        with pytest.raises(ConfigError, match="at least"):
            create_task("mqar").arrays(*arguments)
    assert {"mqar", "state-tracking"} <= set(names(kind="task"))


def test_settings_by_keyword_go_over_those_of_the_spec():
    assert create_task("mqar(pairs=2, length=16)", length=32).config.to_dict() == {
        "pairs": 2,
        "length": 32,
        "vocab": 64,
        "power": 0.01,
        "filler": "random",
    }
    assert repr(create_task("mqar")).startswith("<task mqar(length=48, pairs=8")
