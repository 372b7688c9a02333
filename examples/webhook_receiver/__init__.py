"""A receiver of Replicate's webhooks: proves who sent them, keeps each prediction and its files, does nothing twice.

    Replicate ── POST /replicate ──► signature ──► events ──► store ──► 200, at once
                                                                └─────► outputs: its files, in the background

`python -m examples.webhook_receiver --help`; README.md here has the rest.
"""
