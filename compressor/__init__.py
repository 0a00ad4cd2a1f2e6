"""Everything that changes a model: recipe, pipeline, stages, run directory."""
