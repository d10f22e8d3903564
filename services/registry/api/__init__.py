"""The management API under /registry/v1. Routes read as sentences; what they do lives in the package above."""
