"""Weight files to networks."""
