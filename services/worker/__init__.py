"""One process, one model version: claims requests, runs the engine, publishes frames."""
