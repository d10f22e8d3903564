"""From logits to a token."""

from services.worker.engine.sampling.sampler import Sampled, Sampler

__all__ = ["Sampled", "Sampler"]
