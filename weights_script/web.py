"""HTTP requests for files, and what the answers mean: try again, try elsewhere, or read the file.

The standard library's client is sufficient and honours the proxy variables, so nothing else has to be installed.
"""

import email.utils
import http.client
import logging
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPMessage, HTTPResponse
from typing import IO, TypeVar, cast
from urllib.request import Request

from pipelines.errors import ModelError, redacted
from pipelines.runtime.worker import pause, stop_if_asked
from weights_script.public import PrivateAddress, PublicHTTP, PublicHTTPS, is_public, private_addresses_allowed

log = logging.getLogger(__name__)
Result = TypeVar("Result")

CHUNK = 1 << 20
TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_RESERVED = ":/?#[]@!$&'()*+,;=%"
"""Characters with a meaning in an address. Others that are not plain, such as a space, are percent-encoded."""
STATUS_HINTS = {
    401: "gone, private or gated",
    403: "not allowed, or gated",
    404: "no such file there",
    410: "gone",
}


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Retry and timeout limits."""

    tries: int = 5
    """Failures in a row that brought less than `progress` bytes each."""
    connects: int = 2
    """The same, if the server could not be reached at all."""
    progress: int = 1 << 20
    timeout: float = 30.0
    """Seconds without a byte."""
    slowest: float = 1024.0
    """Minimum average bytes per second, checked after `timeout` seconds."""
    first_wait: float = 1.0
    longest_wait: float = 60.0

    def wait(self, failures: int) -> float:
        """Return the seconds to wait before the next try; each failure doubles them."""
        return min(self.first_wait * 2.0 ** (failures - 1), self.longest_wait)


PATIENCE = Patience()


@dataclass(frozen=True, kw_only=True)
class Access:
    """Credentials and restrictions for requests to an address."""

    token: str = ""
    """A bearer token, sent only to the address's own host."""
    public: bool = False
    """Whether to connect only to hosts on the public internet, because a stranger named the address."""
    own: str = ""
    """An address that the operator chose. Its server may be anywhere, but may only redirect to public hosts."""

    def is_own(self, url: str) -> bool:
        """Return whether an address is on the operator's server."""
        return bool(self.own) and _origin(url) == _origin(self.own)


OPEN = Access()


class SourceFailed(ModelError):
    """This source cannot provide the file; another may. The text contains no token."""

    def __init__(self, text: str) -> None:
        super().__init__(redacted(text))


class Unreachable(SourceFailed):
    """No connection to the server could be made."""


class Refused(SourceFailed):
    """The server answered that it will not send the file."""


class Denied(Refused):
    """HTTP 401 or 403: the server may send the file to others."""


class Interrupted(Exception):
    """A failure that is worth another try. `wait` is the time in seconds that the server asked for, or None."""

    def __init__(self, text: str, wait: float | None = None) -> None:
        super().__init__(redacted(text))
        self.wait = wait


class NoConnection(Interrupted):
    """The server could not be reached."""


class RangeRefused(Exception):
    """HTTP 416: the server does not continue from the requested position."""


def refuse_private(url: str) -> None:
    """Raise SourceFailed if the host of an address is not public, as far as names can be resolved here. Connections
    check their actual address; this covers connections by a proxy, and reports the problem early."""
    host = urllib.parse.urlsplit(url).hostname or ""
    if not is_public(host):
        raise SourceFailed(f"{host} is not a host of the public internet, and only those are asked for files")


def patiently(
    attempt: Callable[[], Result],
    patience: Patience,
    progress: Callable[[], int],
    sleep: Callable[[float], object] = pause,
) -> Result:
    """Try until it works, or fails too often without `progress` (in bytes). Raises SourceFailed."""
    failures = 0
    while True:
        before = progress()
        try:
            return attempt()
        except Interrupted as stop:
            failures = 1 if progress() >= before + patience.progress else failures + 1
            unreached = isinstance(stop, NoConnection)
            if failures >= (patience.connects if unreached else patience.tries):
                raise (Unreachable if unreached else SourceFailed)(f"{stop} ({failures} tries)") from stop
            wait = patience.wait(failures) if stop.wait is None else stop.wait
            if wait > patience.longest_wait:
                raise SourceFailed(f"{stop}; the server asks to wait {wait:.0f} s") from stop
            log.info("%s; trying again in %.1f s", stop, wait)
            sleep(wait)


def ask(url: str, headers: dict[str, str], access: Access, timeout: float) -> HTTPResponse:
    """Return the answer to a GET. Raises SourceFailed, Interrupted or RangeRefused."""
    request = Request(
        urllib.parse.quote(url, safe=_RESERVED),
        headers={"User-Agent": "pastel", "Accept-Encoding": "identity"} | headers,
    )
    if access.token:
        request.add_unredirected_header("Authorization", f"Bearer {access.token}")
    handlers: list[urllib.request.BaseHandler] = [_Redirects()]
    public = access.public and not private_addresses_allowed()
    if public:
        handlers = [_PublicRedirects(access), PublicHTTP(access.is_own), PublicHTTPS(access.is_own)]
    try:
        if public and not access.is_own(url):
            refuse_private(url)
        return cast(HTTPResponse, urllib.request.build_opener(*handlers).open(request, timeout=timeout))
    except urllib.error.HTTPError as error:
        raise _from_status(error) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, PrivateAddress):
            raise SourceFailed(str(error.reason)) from error
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise SourceFailed(f"its certificate cannot be verified ({_reason(error.reason)})") from error
        raise NoConnection(f"cannot be reached ({_reason(error.reason)})") from error
    except ValueError as error:  # the server redirects to an address that cannot be parsed
        raise SourceFailed(f"redirects to an invalid address ({_reason(error)})") from error
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(f"broken answer ({_reason(error)})") from error


def _origin(url: str) -> tuple[str, str]:
    address = urllib.parse.urlsplit(url)
    return address.scheme, address.netloc.lower()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to anything less, and sends the token only to its own host."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        if new.scheme not in ("https", old.scheme):
            raise SourceFailed(f"redirected to an address that is not allowed, {newurl}")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        secret = req.unredirected_hdrs.get("Authorization")
        if request is not None and secret and (old.scheme, old.netloc) == (new.scheme, new.netloc):
            request.add_unredirected_header("Authorization", secret)
        return request


class _PublicRedirects(_Redirects):
    """Follows redirects to hosts on the public internet and to the operator's own server."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if not self._access.is_own(newurl):
            refuse_private(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _from_status(error: urllib.error.HTTPError) -> Exception:
    if error.code == 416:
        return RangeRefused()
    text = f"HTTP {error.code}: {STATUS_HINTS.get(error.code, error.reason)}"
    if error.code in TRY_AGAIN:
        return Interrupted(text, _retry_after(error.headers.get("Retry-After", "")))
    return (Denied if error.code in (401, 403) else Refused)(text)


def _retry_after(value: str) -> float | None:
    """Return the seconds that a Retry-After header asks for, as a number or a date; None if it cannot be read."""
    if value.strip().isdigit():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _reason(error: object) -> str:
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def read_chunks(response: HTTPResponse, patience: Patience, limit: int | None) -> Iterator[bytes]:
    """Yield the body as it arrives. Raises Interrupted for a broken or slow connection, SourceFailed past `limit`."""
    started, got = time.monotonic(), 0
    while chunk := _next_chunk(response, got):
        stop_if_asked()
        got += len(chunk)
        if limit is not None and got > limit:
            raise SourceFailed("wrong length: longer than expected")
        yield chunk
        seconds = time.monotonic() - started
        if seconds > patience.timeout and got < patience.slowest * seconds:
            raise Interrupted(f"too slow: {got} bytes in {seconds:.0f} s")


def _next_chunk(response: HTTPResponse, got: int) -> bytes:
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(f"cut after {got} bytes of this try ({_reason(error)})") from error


def refuse_pages(response: HTTPResponse) -> None:
    """Raise SourceFailed for answers that cannot be a weight file."""
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise SourceFailed("sent a web page instead of the file (a login or licence page, or a proxy's)")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise SourceFailed(f"sent the file encoded as {encoding}, which was not requested")


def stated_length(response: HTTPResponse) -> int | None:
    """Return the number of bytes in this answer's body; None if it does not say."""
    stated = response.headers.get("Content-Length", "")
    return int(stated) if stated.isdigit() else None


def shows_its_end(response: HTTPResponse) -> bool:
    """Return whether a cut body can be told from a complete one."""
    chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
    return chunked or stated_length(response) is not None


def accepts_ranges(response: HTTPResponse) -> bool:
    """Return whether the server says, or has just shown, that it sends parts of this file."""
    return response.status == 206 or response.headers.get("Accept-Ranges") == "bytes"


def range_start(response: HTTPResponse) -> int:
    """Return where in the file the answer's body begins: 0 for the whole file, -1 for a range that cannot be read."""
    if response.status != 206:
        return 0
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def version_of(response: HTTPResponse) -> str:
    """Return what identifies this version of the file for If-Range: a strong ETag, else its date, else nothing."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
