"""Learners with river's API."""
