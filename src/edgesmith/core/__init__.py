"""The shared nouns: what every folder may import, and what imports none of them. No torch here."""
