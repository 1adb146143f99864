"""Clicks to a matrix-factorisation snapshot; never reaches torch."""
