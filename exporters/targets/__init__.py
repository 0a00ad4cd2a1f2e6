"""A class for every runtime that a model is deployed to."""
