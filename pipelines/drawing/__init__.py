"""The three phases of a picture."""
