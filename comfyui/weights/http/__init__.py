"""One request to a server from outside, and what its answer means."""
