"""What the commands do; `cli` declares them, and imports each when it is called, so that `--help` answers at once."""
