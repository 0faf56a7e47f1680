"""Predictions kept on disk while a model runs, and gathered over its processes."""
