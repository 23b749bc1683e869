"""Weight files of strangers as plain data: bounded, without torch."""
