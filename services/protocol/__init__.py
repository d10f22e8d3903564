"""Everything that crosses a process boundary: messages, the queue, reply streams, routes, jobs, reports and errors.

Imports none of our other packages.
"""
