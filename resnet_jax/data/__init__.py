"""Datasets, and the batches that are drawn from them."""
