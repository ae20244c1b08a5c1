"""Why the driver does not do what it was asked: one exception, with the gRPC code that kubelet acts on.

The code says who must act. INVALID_ARGUMENT, NOT_FOUND and FAILED_PRECONDITION: whoever wrote the pod or the data set.
UNAUTHENTICATED and PERMISSION_DENIED: whoever grants permissions; these two are refusals of access, which also take a
volume's data sets away. UNAVAILABLE and ABORTED: nobody, kubelet asks again. INTERNAL: whoever runs the driver.
"""

from __future__ import annotations

from typing import Literal

Code = Literal[
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "UNAUTHENTICATED",
    "PERMISSION_DENIED",
    "UNAVAILABLE",
    "ABORTED",
    "INTERNAL",
]


class Refused(Exception):
    """`str()` is one line for the pod's events."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code: Code = code

    @property
    def is_denial(self) -> bool:
        """The pod may not have what it asks for, as opposed to: it cannot be had now."""
        return self.code in ("UNAUTHENTICATED", "PERMISSION_DENIED")
