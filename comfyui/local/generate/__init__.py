"""`scripts/generate`: a picture from a prompt, a checkpoint and LoRAs, by way of Cog's HTTP API."""
