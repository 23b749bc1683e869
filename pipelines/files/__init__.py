"""Untrusted weight files as plain data: with limits, and without torch."""
