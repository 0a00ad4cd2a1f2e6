"""`edgesmith init`: the user's own model, looked at, and a task and a recipe written for it."""
