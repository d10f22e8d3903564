"""The gateway: accepts HTTP requests, puts them on the queue, and relays the worker's events in the caller's dialect."""
