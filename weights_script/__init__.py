"""Weights: the manifest, fetching and checking files, and choosing the model that a container loads."""
