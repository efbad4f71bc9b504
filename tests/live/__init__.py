"""Against real servers: `make live`."""
