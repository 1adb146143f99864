"""Adapter updates to a global model, and the global model to answers."""
