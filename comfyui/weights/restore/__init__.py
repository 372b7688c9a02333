"""From a tar, or the links of a manifest, to the weights in ComfyUI's models folder."""
