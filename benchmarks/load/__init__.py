"""What the benchmarks of the gateway share: its processes, and a load generator that leaves the machine to them."""
