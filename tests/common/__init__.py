"""Tests of the values and ports."""
