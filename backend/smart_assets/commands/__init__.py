"""The commands that use a service: one module each, light to import, so that `--help` answers at once."""
