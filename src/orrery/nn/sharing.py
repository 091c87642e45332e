"""Parameters that layers have in common: one set of weights, used at several depths.

    Theta_l = { theta_name }  u  { theta_{l,name} }        names that a pattern of `common` matches, and all others

A block's config names them (:class:`orrery.nn.block.BlockConfig`), and the layers of one kind have them in common: "all" is
one layer read over and over (Universal Transformer, arXiv 1807.03819; ALBERT, 1909.11942), "guide.attention.*" one attention
for all its places (Zamba, 2405.16712); several patterns stand in a tuple, or with spaces between them. States are every
layer's own. A parameter that several layers have is one tensor: it is counted and stored once, and its gradient is the sum
over its uses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from orrery.core.errors import ConfigError


def common_names(block: nn.Module, common: Sequence[str] | str) -> list[str]:
    """Names of a block's parameters that match one of the patterns (`*` any letters, `?` one); of all, where `common` is "all".

    Raises:
        ConfigError: for a pattern that matches none.
    """
    patterns = ["*" if each == "all" else each for each in (common.split() if isinstance(common, str) else common)]
    if not patterns:
        return []
    names = [name for name, _ in block.named_parameters(remove_duplicate=False)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"common: no parameter of the layer is called '{pattern}'. There are: {', '.join(names)}")
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def tie_layers(blocks: Iterable[nn.Module], layout: Iterable[int]) -> None:
    """Give the layers of one kind the parameters that their config has in common; the first layer that has one gives it.

    Args:
        blocks: layers whose `config.common` holds patterns. layout: every layer's kind.

    Raises:
        ConfigError: for a pattern that matches nothing, and for parameters whose shapes follow the depth.
    """
    first: dict[tuple[int, str], nn.Parameter] = {}
    for block, kind in zip(blocks, layout, strict=True):
        for name in common_names(block, block.config.common):  # type: ignore[union-attr, arg-type]
            home, _, leaf = name.rpartition(".")
            own = block.get_parameter(name)
            given = first.setdefault((kind, name), own)
            if given.shape != own.shape:
                raise ConfigError(f"common: {name} differs from layer to layer, {tuple(given.shape)} and {tuple(own.shape)}")
            setattr(block.get_submodule(home), leaf, given)
