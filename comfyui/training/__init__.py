"""A LoRA from pictures: what people send becomes a clean dataset, ComfyUI trains on it, and the result is proven.

    folder, zip or tar ──► source_files ──► captions ──► pictures ──► fitting ──► dataset

Nothing up to the dataset knows ComfyUI.
"""
