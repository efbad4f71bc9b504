"""Reproducible measurements, side by side in one run: read them as ratios."""
