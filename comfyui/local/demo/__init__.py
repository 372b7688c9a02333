"""Tiny weights of real layouts, made on the spot, and a workflow for them: the main job without a download."""
