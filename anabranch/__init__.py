"""Anabranch: a continual recommender with two inflows, federated and streaming."""
