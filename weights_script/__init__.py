"""Where weights come from: the manifest, fetching, checking, and which model a container loads."""
