"""Workers as containers beside the agent. `engine.py` alone knows Docker."""
