"""Stands in for the package of example workflows (400 MB) that only ComfyUI's browser interface shows.

server.py of ComfyUI serves its `templates` folder; without the package each start logs a block of errors that would
send people looking for a fault where there is none.
"""
