"""What a request is answered with instead of an answer: OpenAI's error body under the right status."""

from typing import Any

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    422: "unprocessable_entity_error",
    429: "rate_limit_error",
    499: "client_closed_request",
    500: "server_error",
    503: "service_unavailable_error",
}
"""The error's type by status; of any other the first one."""


class Refused(Exception):  # noqa: N818 - what happened to the request
    """A request that gets no answer.

    Attributes:
        status: of HTTP.
        message: what is wrong, which value, what is allowed, what to do.
        param: the field, such as ``messages.0.content``; None: no single one.
        code: for programs.
        retry_after_s: when to come again; None: never as it is.
    """

    def __init__(
        self, status: int, message: str, *, code: str, param: str | None = None, retry_after_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        error = {
            "message": self.message,
            "type": TYPES.get(self.status, TYPES[400]),
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """What goes with it."""
        return {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}


def bad(param: str | None, message: str, *, code: str = "invalid_value") -> Refused:
    """A field that cannot be used."""
    return Refused(400, message, code=code, param=param)
