"""What crosses process boundaries: messages, the queue, reply streams, routes, jobs, reports and errors.

Imports none of our other packages (a contract in pyproject.toml).
"""
