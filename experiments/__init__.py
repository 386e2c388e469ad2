"""Experiments: one file each, and the generators of the bundled model and task."""
