"""Weights: from URLs to one verified tar (`bake`), and from that tar into ComfyUI's models folder (`restore`).

    sources ──► download ──► verify ──► archive        (bake: train.py)
    tar_reader ──► verify ──► staging ──► models/      (restore: predict.py)

What both ways agree on is in `manifest` (what a tar holds) and `folders` (where a file may lie). Nothing here knows
ComfyUI's engine. Ranges, resume, healing and further kinds of sources have their place in `download` and `sources`.
"""
