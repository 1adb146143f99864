"""From many adapter updates to one: one idea a file, pure functions on tensors."""
