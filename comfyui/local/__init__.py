"""What stands in for Replicate on a laptop: Cog's server as a child process, demo weights, the quickstart.

Not part of the image: nothing here runs on Replicate.
"""
