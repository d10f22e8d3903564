"""The parts of benchmarks/engine.py: servers to start, a load generator, workloads, and the arithmetic of ratios."""
