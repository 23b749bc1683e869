"""Measurements of speed, compared with what a user would run instead. `script/bench --help` lists them."""
