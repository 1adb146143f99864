"""Tests of the query path."""
