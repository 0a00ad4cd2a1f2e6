"""Several models to one: fusion of predictions, combination of outputs, merging of weights."""
