"""ComfyUI as a Cog model, with weights you can trust.

Two halves that meet only in predict.py and train.py: `comfyui.weights` (nothing about ComfyUI's engine in it) and
`comfyui.engine` + `comfyui.workflow` + `comfyui.outputs` (nothing about downloads of weights in it).
`comfyui.local` stands in for Replicate on a laptop. docs/architecture.md shows the whole picture.
"""
