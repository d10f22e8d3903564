"""Shared by the benchmarks of the gateway: its processes, and a load generator that uses little of the machine."""
