"""Is this stream of bytes the weight file it should be? Pure."""
