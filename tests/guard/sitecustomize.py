"""Python imports this at start-up when this folder is on PYTHONPATH: the guard reaches every child process too."""

import loopback_only

loopback_only.install()
