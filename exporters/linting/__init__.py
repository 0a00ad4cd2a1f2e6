"""Rules that a runtime has for a file, what breaks them, and how that is mended."""
