"""The APIs that callers speak. A dialect converts request bodies to GenerateRequests, and a worker's events to its wire format.

Dialects do no I/O and keep no state beyond one reply. Each is a package with `errors.py`, `requests.py`, `replies.py` and
`listings.py`, and is registered in services.gateway.errors.
"""
