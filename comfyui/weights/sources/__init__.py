"""Where weights come from: what an entry of a training input means, and what its server says of the file.

`entries` splits a training input, `links` says what an entry means (both pure), `resolve` asks the network for name,
size and SHA-256 before a byte of the file is fetched. This front door has the pure part; `resolve` is imported from
its own module, so that naming a source needs no HTTP library.
"""

from comfyui.weights.remote import NO_TOKENS, Kind, RemoteFile, Source, TarMember, Tokens
from comfyui.weights.sources.entries import parse_list
from comfyui.weights.sources.links import plain, understand

__all__ = ["NO_TOKENS", "Kind", "RemoteFile", "Source", "TarMember", "Tokens", "parse_list", "plain", "understand"]
