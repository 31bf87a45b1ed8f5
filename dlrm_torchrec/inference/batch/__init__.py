"""Batch scoring: the predictions of a package for all rows of a file."""
