"""Client of an OpenAI-compatible chat endpoint (vLLM, DeepSeek, a local server): the one other file with a network.

Nothing is sent before a user names an endpoint. Redirects are refused, so that a key never follows one elsewhere.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MOST_BYTES = 4 << 20
"""Answers beyond are not read."""

TEMPORARY = (408, 409, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same question may be answered."""

REFUSED = (401, 403, 404)
"""Statuses that every question will get."""


class EndpointRefused(ValueError):
    """The endpoint will not answer any question: wrong address, model or key."""


class EndpointFailed(OSError):
    """This question got no answer, after all retries."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where questions go.

    Attributes:
        url: base address, such as http://127.0.0.1:8000/v1.
        api_key: sent as a bearer token; None sends none. Never shown.
        timeout_seconds: for one answer.
        retries: further attempts after time-outs, broken connections and busy servers.
        backoff_seconds: wait before the first of them, doubled each time; a server's Retry-After counts if longer.
        sleep: how to wait.
    """

    url: str
    api_key: str | None = None
    timeout_seconds: float = 120.0
    retries: int = 4
    backoff_seconds: float = 1.0
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        """Refuse what is no web address."""
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"The endpoint {self.url} must begin with http:// or https://.")

    def __repr__(self) -> str:
        return f"Endpoint({self.url})"

    def check(self) -> None:
        """Find out before any work whether something answers there.

        Raises:
            EndpointRefused: nothing does, or it wants another key.
        """
        try:
            self._ask("/models", None)
        except EndpointRefused as refused:
            if getattr(refused, "status", None) != 404:  # not every server lists its models
                raise
        except EndpointFailed as failed:
            raise EndpointRefused(str(failed)) from failed

    def chat(self, model: str, messages: Sequence[Mapping[str, Any]], most_tokens: int = 600) -> str:
        """The answer of a model to messages.

        Raises:
            EndpointRefused: it will answer no question: unknown model or address, wrong key.
            EndpointFailed: it did not answer this one, after all retries, or not in the form of the API.
        """
        question = {"model": model, "messages": list(messages), "max_tokens": most_tokens, "temperature": 0}
        answer = self._ask("/chat/completions", question)
        try:
            text = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError) as error:
            raise EndpointFailed(f"{self.url} answered without choices[0].message.content.") from error
        if not isinstance(text, str) or not text.strip():
            raise EndpointFailed(f"{self.url} answered with nothing.")
        return text

    def _ask(self, path: str, content: Mapping[str, Any] | None) -> Any:
        """JSON of one request, tried again while that may help."""
        wait = self.backoff_seconds
        for attempt in range(self.retries + 1):
            try:
                return self._once(path, content)
            except _Again as again:
                if attempt == self.retries:
                    tries = f" ({attempt + 1} attempts)" if attempt else ""
                    raise EndpointFailed(f"{self.url}{path}: {again.why}{tries}.") from again
                self.sleep(max(wait, again.wait))
                wait *= 2
        raise AssertionError("unreachable")

    def _once(self, path: str, content: Mapping[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, data=data, headers=headers)
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout_seconds) as response:
                return json.loads(response.read(MOST_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                raise self._status(path, error) from error
        except ValueError as error:
            raise _Again("the answer is not JSON") from error
        except TimeoutError as error:
            raise _Again(f"no answer in {self.timeout_seconds:g} s") from error
        except OSError as error:  # URLError is one
            raise _Again(f"no connection ({getattr(error, 'reason', error)})") from error

    def _status(self, path: str, error: urllib.error.HTTPError) -> Exception:
        said = " ".join(error.read(300).decode(errors="replace").split())
        if error.code in TEMPORARY:
            after = error.headers.get("Retry-After", "")
            return _Again(f"status {error.code}", wait=min(float(after), 60.0) if after.isdigit() else 0.0)
        if error.code in REFUSED:
            hint = "check the address and the model" if error.code == 404 else "check the key"
            refused = EndpointRefused(f"{self.url}{path} refuses (status {error.code}), {hint}. {said}".rstrip())
            refused.status = error.code  # type: ignore[attr-defined]
            return refused
        return EndpointFailed(f"{self.url}{path}: status {error.code}. {said}".rstrip())


class _Again(Exception):
    """This attempt failed; another one may not."""

    def __init__(self, why: str, wait: float = 0.0) -> None:
        super().__init__(why)
        self.why, self.wait = why, wait
