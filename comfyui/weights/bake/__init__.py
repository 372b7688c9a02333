"""From lists of links to one verified tar."""
