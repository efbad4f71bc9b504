"""Objects by key, on any backend: one abstract class, one factory."""
