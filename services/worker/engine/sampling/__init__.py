"""From logits to a token: the sampler chain of one request, in numpy. `sampler` holds the chain, the other modules its stages."""

from services.worker.engine.sampling.sampler import Matcher, Sampled, Sampler

__all__ = ["Matcher", "Sampled", "Sampler"]
