"""What can be compared: names, patterns, files, modules; and how mistakes are told."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orrery.compare import candidates as c
from orrery.core import registry
from orrery.core.errors import ConfigError, UnknownNameError
from orrery.models.wrap import wrap


class Tiny(nn.Module):
    """The smallest causal model: it looks at one token."""

    def __init__(self, vocab: int = 257, width: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.scale = nn.Parameter(torch.ones(width))
        self.head = nn.Linear(width, vocab)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(tokens) * self.scale)


def test_names_and_patterns():
    found = c.candidates(["transformer", "gpt2 + transformer", " transformer(canon=abcd) "])
    assert [item.label for item in found] == ["transformer", "gpt2 + transformer", "transformer(canon=abcd)"]
    rows = [c.describe(item, "nano", 257) for item in found]
    assert all(row.matched and abs(row.size_error) <= 0.02 for row in rows)
    assert rows[1].summary.startswith("hybrid of gpt2, transformer") and rows[0].paper
    assert len({row.config_hash for row in rows}) == 3 and rows[0].config["vocab_size"] == 257
    assert c.candidates("transformer")[0].label == "transformer"


def test_models_that_count():
    (counted,) = c.candidates(["kneser-ney"])
    with pytest.raises(ConfigError, match="'kneser-ney' has no parameters to train by steps"):
        c.describe(counted, "nano", 257)
    (mixed,) = c.candidates(["infinigram"])
    assert mixed.notes[0].startswith("infinigram counts the text that it reads") and not c.describe(mixed, "nano", 257).matched


def test_weights_come_from_the_seed():
    (candidate,) = c.candidates(["gpt2"])
    one, same, other = (candidate.build("nano", 257, seed) for seed in (1, 1, 2))
    assert torch.equal(one.embed.weight, same.embed.weight) and not torch.equal(one.embed.weight, other.embed.weight)


def test_modules_are_redrawn_per_seed_and_say_what_cannot_be():
    module = Tiny()
    found = c.candidates([module, wrap(Tiny(), name="mine"), Tiny(), Tiny])
    assert [item.label for item in found] == ["Tiny", "mine", "Tiny (2)", "Tiny (3)"]
    first, again, other = (found[0].build(None, 257, seed) for seed in (1, 1, 2))
    assert torch.equal(first.module.head.weight, again.module.head.weight)
    assert not torch.equal(first.module.head.weight, other.module.head.weight)
    assert not torch.equal(first.module.head.weight, module.head.weight) and not found[0].portable
    assert "Tiny cannot draw new initial weights" in found[0].notes[0] and found[3].notes == ()
    assert not torch.equal(found[3].build(None, 257, 1).module.scale, torch.zeros(4))
    row = c.describe(found[0], "nano", 257)
    assert not row.matched and row.parameters == 4 and row.costs.parameters_total == 4 * 257 * 2 + 257 + 4
    with pytest.raises(ConfigError, match="vocabulary of 257"):
        c.describe(found[0], "nano", 8192)


MIXER = '''"""A mixer of one's own."""
from orrery.core.registry import register
from orrery.mixers.attention import Attention
class Own(Attention):
    """Attention under another name."""
register("own-mixer", mixer="Own", summary="mine", tags=("causal",))
register("not-a-mixer", objective="Own")
'''


def test_a_file_of_ones_own(tmp_path):
    file = tmp_path / "my_mixer.py"
    file.write_text(MIXER)
    try:
        (found,) = c.candidates([str(file)])
        assert (found.label, found.name, found.file) == ("own-mixer", "own-mixer", str(file)) and found.portable
        assert c.describe(found, "nano", 257).matched
        file.write_text('"""Nothing."""\nx = 1\n')
        with pytest.raises(ConfigError, match="no register line"):
            c.candidates([str(file)])
    finally:
        registry.refresh()
    with pytest.raises(ConfigError, match="no file"):
        c.candidates([str(tmp_path / "absent.py")])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([], ConfigError, "nothing to compare"),
        ([""], ConfigError, "name is empty"),
        (["transfomer"], UnknownNameError, "Did you mean 'transformer'"),
        (["transformer", "transformer"], ConfigError, "named twice"),
        ([3], ConfigError, "not int"),
        (["transformer(("], ConfigError, "cannot read"),
        ([nn.Linear(2, 2)], ConfigError, "Linear cannot be called on token ids"),
    ],
)
def test_mistakes_are_told(given, error, message):
    with pytest.raises(error, match=message):
        c.candidates(given)
