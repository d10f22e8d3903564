"""Embeddings and reranking: what a worker does with a pooled model."""
