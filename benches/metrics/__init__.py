"""Accuracy of every kind of task, sample by sample, and what groups of samples lost."""
