"""The sampler chain of a request, in numpy: from logits to a token. `sampler` has the chain, the other modules its stages."""

from services.worker.engine.sampling.sampler import Matcher, Sampled, Sampler
from services.worker.engine.sampling.stages import Stages

__all__ = ["Matcher", "Sampled", "Sampler", "Stages"]
