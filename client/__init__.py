"""Interactions to adapter updates: what runs where the data is."""
