"""Datasets, preprocessing, augmentation and batches."""
