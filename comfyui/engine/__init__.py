"""The embedded ComfyUI: its pinned source, its process, and the client that speaks to it."""
