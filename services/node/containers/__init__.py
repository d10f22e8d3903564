"""Runs workers as containers beside the agent. Only `engine.py` imports Docker's SDK."""
