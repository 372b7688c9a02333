"""A workflow as people send it: read, changed where they asked for it, and explained where ComfyUI refuses it."""
