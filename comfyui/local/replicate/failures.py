"""Errors of the services that scripts/replicate speaks to: who must act is said by the sentence, the status is data.

ComfyUIModelError
├── ServiceError     Replicate, Hugging Face or Cog's server refused a request, or could not be reached
└── RunError         a training or prediction ended, and not with success
"""

from __future__ import annotations

from comfyui.errors import ComfyUIModelError


class ServiceError(ComfyUIModelError):
    """A service did not do what it was asked. `status` is the HTTP status, None where there was no answer."""

    def __init__(self, message: str, *, service: str, status: int | None = None, detail: str = "") -> None:
        super().__init__(message)
        self.service = service
        self.status = status
        self.detail = detail


class RunError(ComfyUIModelError):
    """A run ended without success. `kind` is "training" or "prediction"; `status` is "failed" or "canceled"."""

    def __init__(self, message: str, *, kind: str, run_id: str, status: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.run_id = run_id
        self.status = status
