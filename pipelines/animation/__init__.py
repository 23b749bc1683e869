"""Films: drawing their frames, computing frames between them, and writing video files."""
