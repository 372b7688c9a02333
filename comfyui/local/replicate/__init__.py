"""scripts/replicate: from a folder of weights to a live API on Replicate, one command for each step.

    arguments ──► commands ──► api (the official client, over `transport`) ──► Replicate
                     │    └──► upload (huggingface_hub) ──► Hugging Face
                     └── ship: upload → create → push → train → picture, each remembered in `state`

Every module takes `replicate` for the official client: this package is only ever imported by its whole name.
"""
