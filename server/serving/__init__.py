"""The HTTP service and what it answers from."""
