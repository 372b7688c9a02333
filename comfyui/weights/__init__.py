"""Weights: from links to one verified tar (`bake`), and from that tar into ComfyUI's models folder (`restore`).

    sources ──► bake ──► transfer ──► tar                        (train.py, scripts/weights)
    tar ──► restore ──► bring ──► transfer ──► models/           (predict.py)
    sources ──► linked ──► transfer ──► models/                  (links in a workflow)

`judge` looks at every byte on each of these ways; what all agree on is in `manifest` (what a tar holds) and `folders`
(where a file may lie). Nothing here knows ComfyUI's engine.
"""
