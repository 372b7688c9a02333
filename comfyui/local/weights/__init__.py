"""`scripts/weights`: bake, check and restore weights by hand, and the manifest of this project."""
