"""Where and how work runs: devices, memory, threads and child processes."""
