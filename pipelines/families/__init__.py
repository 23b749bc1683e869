"""Families of models as data, and how to find out which family a file belongs to."""
