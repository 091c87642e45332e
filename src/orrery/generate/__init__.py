"""The inference engine: continue text or tokens with any model, one token at a time, through its state."""

from orrery.core.rooms import make_callable
from orrery.generate.engine import generate, stream
from orrery.generate.sampling import Sampling

__all__ = ["Sampling", "generate", "stream"]

make_callable(__name__)
