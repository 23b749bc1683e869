"""Measurements: how long things take here, beside what a user would run instead. `script/bench --help` lists them."""
