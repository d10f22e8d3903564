"""Model files: reads GGUF headers and estimates how much memory a model needs."""
