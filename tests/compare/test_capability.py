"""Models of the capability tasks: which take part."""

import pytest

from orrery.compare import capability
from orrery.core.errors import ConfigError


def test_models_that_count_take_no_part():
    with pytest.raises(ConfigError, match="kneser-ney counts and is not trained by steps"):
        capability.build("kneser-ney", capability.SETTINGS[0], 0)
