"""What compression changed that the mean hides: corruptions, perturbations, attribution, disparity."""
