"""What callers speak: bodies to GenerateRequests, events to their wire format. Pure: no I/O, no state beyond one reply.

A dialect is a package with `errors.py`, `requests.py`, `replies.py` and `listings.py`, and a line in services.gateway.errors.
"""
