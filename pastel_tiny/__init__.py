"""The embedded default model: pastel scenes, their renderer and the training (development only)."""
