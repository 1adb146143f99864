"""Tests of the fleets."""
