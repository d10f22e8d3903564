"""Continuous batching over llama.cpp. Knows nothing of Redis, HTTP or the platform.

`Engine.step()` schedules, decodes, updates. Of our own code the engine imports only the plain values of
services.protocol.messages.
"""
