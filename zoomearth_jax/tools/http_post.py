"""Posting to an address of http or https: in a given time, without redirects, of an answer no more than is allowed."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

_PART = 2**16


class HttpFailure(Exception):
    """The address can't be reached, takes too long, or answers with an error or too much; says which address and what."""


class Address:
    """An address of http or https that JSON is posted to."""

    def __init__(self, address: str, proxies: bool):
        """Checks the form.

        Args:
            proxies: whether the proxies that the environment names (http_proxy, …) are used.

        Raises:
            ValueError: not an address of http or https with a host.
        """
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{address!r} is no address; give http://HOST/PATH or https://HOST/PATH")
        self._address = address
        self._opener = urllib.request.OpenerDirector()  # no files, no other protocols, no redirects
        for handler in (
            *[urllib.request.ProxyHandler] * proxies,
            urllib.request.HTTPHandler,
            urllib.request.HTTPSHandler,
            urllib.request.HTTPDefaultErrorHandler,
            urllib.request.HTTPErrorProcessor,
        ):
            self._opener.add_handler(handler())

    def post(self, body: bytes, timeout_s: float, max_bytes: int) -> bytes:
        """The answer to a body of JSON.

        Args:
            timeout_s: seconds that the whole exchange may take.
            max_bytes: most bytes of an answer.

        Raises:
            HttpFailure: there is no such answer.
        """
        until = time.monotonic() + timeout_s
        request = urllib.request.Request(self._address, body, {"Content-Type": "application/json"}, method="POST")
        try:
            with self._opener.open(request, timeout=timeout_s) as response:
                answer = bytearray()
                while part := response.read1(_PART):
                    answer += part
                    if len(answer) > max_bytes:
                        raise HttpFailure(f"{self._address} answered with more than {max_bytes:,} bytes")
                    if time.monotonic() > until:
                        raise TimeoutError
                return bytes(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise HttpFailure(f"{self._address} answered with status {error.code}") from None
        except TimeoutError:
            raise HttpFailure(f"{self._address} took longer than {timeout_s:g} s") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise HttpFailure(f"{self._address} took longer than {timeout_s:g} s") from None
            raise HttpFailure(f"{self._address} can't be reached ({reason})") from None
