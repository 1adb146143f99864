"""Tests of the click pipeline."""
