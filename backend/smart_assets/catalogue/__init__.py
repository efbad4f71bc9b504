"""The catalogue: the database of assets. Only repositories query; only use-cases open transactions."""
