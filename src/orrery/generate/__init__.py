"""The inference engine: continue text or tokens with any model, one token at a time, through its state."""

from orrery.generate.engine import generate, stream
from orrery.generate.sampling import Sampling

__all__ = ["Sampling", "generate", "stream"]
