"""Weights: from links to one verified tar (`bake`), and from that tar into ComfyUI's models folder (`restore`).

    sources ──► wanted ──► layout ──► transfer ──► archive           (bake: train.py, scripts/weights)
    tar_source ──► restore_baked / restore_foreign ──► transfer ──► staging ──► models/      (restore: predict.py)

`verify` judges every byte both ways; what both agree on is in `manifest` (what a tar holds) and `folders` (where a file
may lie). Nothing here knows ComfyUI's engine.
"""
