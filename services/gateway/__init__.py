"""The data plane's edge: HTTP in, queue out, and the worker's events back in the caller's dialect."""
