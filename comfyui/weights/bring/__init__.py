"""Files on their way into a folder: fetched into a staging area, proven, then renamed."""
