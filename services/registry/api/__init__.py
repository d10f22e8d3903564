"""The management API under /registry/v1, and the health checks."""
