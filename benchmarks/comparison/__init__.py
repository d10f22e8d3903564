"""What benchmarks/engine.py is made of: servers to start, a load generator, workloads, and the arithmetic of ratios."""
