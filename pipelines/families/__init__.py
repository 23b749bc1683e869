"""Families of models as data, and how a file tells its family."""
