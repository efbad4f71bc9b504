"""HTTP, and nothing else: routes, schemas, errors, and the way bodies are read."""
