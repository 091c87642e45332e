"""transformers in float64 throughout, so that it can be compared at 1e-8."""

import torch
from torch.overrides import TorchFunctionMode

_HALFWAY = (torch.Tensor.to, torch.Tensor.type, torch.zeros, torch.softmax, torch.nn.functional.softmax, torch.Tensor.softmax)


class AllDouble(TorchFunctionMode):
    """They cast to float32 inside; here float64 stays float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.Tensor.float and args[0].dtype == torch.int64:  # positions, which meet float64 rates
            return args[0].double()
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if function is torch.Tensor.float:
                return args[0]
            if function in _HALFWAY:
                args = tuple(torch.float64 if a is torch.float32 else a for a in args)
                kwargs = {k: torch.float64 if a is torch.float32 else a for k, a in kwargs.items()}
        return function(*args, **kwargs)


class DoubleRates(TorchFunctionMode):
    """transformers' rates of rotary positions, which are computed in float32 from whole numbers, in float64."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = {k: torch.float64 if a is torch.float32 else a for k, a in (kwargs or {}).items()}
        return args[0].double() if function is torch.Tensor.float else function(*args, **kwargs)


def _rates(config, kind, layer):
    """Scaled rates, by their own code."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    with DoubleRates():
        return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), layer_type=layer)[0]


def double(model):
    """The model in float64, with the rates of its rotary positions computed anew: they are float32's there."""
    model = model.double()
    model.config._experts_implementation = "eager"  # the grouped product has no float64
    ropes = model.config.to_dict().get("rope_parameters") or {}
    theta, layers = ropes.get("rope_theta", 10000.0), {kind: rope for kind, rope in ropes.items() if isinstance(rope, dict)}
    for module in model.modules():
        if hasattr(module, "mup_vector"):  # Falcon-H1's multipliers, of one decimal in the tests
            module.mup_vector = module.mup_vector.mul(1e6).round() / 1e6
        if hasattr(module, "inv_freq"):
            count = len(module.inv_freq)
            module.inv_freq = theta ** -(torch.arange(count, dtype=torch.float64) / count)
            if ropes.get("rope_type", "default") != "default":
                module.inv_freq = _rates(model.config, ropes["rope_type"], None)
        for kind, rope in layers.items():  # rates of each kind of layer, zero where nothing turns
            if hasattr(module, f"{kind}_inv_freq"):
                held = getattr(module, f"{kind}_inv_freq")
                rates = rope["rope_theta"] ** -(torch.arange(len(held), dtype=torch.float64) / len(held))
                if rope.get("rope_type", "default") not in ("default", "proportional"):
                    rates = _rates(model.config, rope["rope_type"], kind)
                setattr(module, f"{kind}_inv_freq", torch.where(held > 0, rates, 0.0))
    return model
