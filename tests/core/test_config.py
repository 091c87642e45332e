"""Configs: equal to dicts, closed to code, clear about mistakes."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orrery.core.config import Config, apply_overrides, config_hash, parse_overrides
from orrery.core.errors import ConfigError
from orrery.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Inner(Config):
    heads: int = 4
    name: str = "a"


@dataclass(frozen=True, kw_only=True)
class Outer(Config):
    width: int
    rate: float = 1.0
    inner: Inner = field(default_factory=Inner)
    sizes: tuple[int, ...] = (1, 2)
    window: int | None = None
    on: bool = False


@given(st.builds(Outer, width=st.integers(-(2**40), 2**40), rate=st.floats(allow_nan=False), sizes=st.lists(st.integers(0, 99)).map(tuple)))
def test_dict_round_trip(config):
    again = Outer.from_dict(config.to_dict())
    assert again == config and config_hash(again) == config_hash(config)


def test_replace_reaches_into_nested_configs():
    config = Outer(width=8).replace(**{"inner.heads": 2, "rate": 3})
    assert config.inner.heads == 2 and config.rate == 3.0 and isinstance(config.rate, float)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"widht": 3}, ("unknown setting 'widht'", "width")),
        ({"width": 3, "inner": {"head": 1}}, ("'inner.head'", "heads")),
        ({}, ("missing setting width",)),
        ({"width": "big"}, ("'width' must be a whole number", "'big'")),
        ({"width": 1.5}, ("whole number",)),
        ({"width": True}, ("whole number",)),
        ({"width": 2**50}, ("beyond the largest",)),
        ({"width": 1, "on": 1}, ("true or false",)),
        ({"width": 1, "rate": float("nan")}, ("must be a number",)),
        ({"width": 1, "sizes": "12"}, ("must be a list",)),
        ({"width": 1, "inner": 3}, ("must be a mapping",)),
    ],
)
def test_mistakes_are_named(data, words):
    with pytest.raises(ConfigError) as error:
        Outer.from_dict(data)
    assert all(word in str(error.value) for word in words)


def test_overrides_parse_literals_and_nothing_else():
    parsed = parse_overrides(["a.b=3", "rate=1e-3", "on=true", "window=none", "name=os.system", "sizes=[1, 2]", "call=__import__('os')"])
    assert parsed == {
        "a.b": 3, "rate": 1e-3, "on": True, "window": None, "name": "os.system", "sizes": [1, 2], "call": "__import__('os')",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="key=value"):
        parse_overrides(["heads"])


def test_a_mapping_of_settings_takes_dotted_keys():
    config = TrainConfig().replace(**{"model.settings.local.window": None, "objective.settings.task": {"share": 0.15}})
    assert config.model.settings == {"local.window": None}
    changed = config.replace(**{"objective.settings.task.share": 0.3, "model.settings.local.window": 3})
    assert changed.objective.settings == {"task": {"share": 0.3}}  # a mapping that stands there is reached into
    assert changed.model.settings == {"local.window": 3}
    with pytest.raises(ConfigError, match="holds no further settings"):
        config.replace(**{"data.corpus.local": 3})


def test_overrides_create_no_branches():
    with pytest.raises(ConfigError, match="inner"):
        apply_overrides(Outer(width=1).to_dict(), {"innr.heads": 3})


def test_hash_ignores_order_and_sees_values():
    assert config_hash({"a": 1, "b": (2, 3)}) == config_hash({"b": [2, 3], "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
