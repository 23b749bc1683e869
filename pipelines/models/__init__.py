"""Weight files -> networks."""
