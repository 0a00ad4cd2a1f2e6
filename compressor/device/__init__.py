"""A finished run on another machine: the bundle, and measuring it over ssh."""
