"""A tar of weights: where everything lies in it, how it is written, and how it is read again, ours or not."""
