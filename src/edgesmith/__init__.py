"""edgesmith: a trained model in, the smallest and fastest artefact that still does the job out, with proof."""

__version__ = "0.1.0"
