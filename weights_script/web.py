"""Asking a server for a file, and what its answers mean: try again, try elsewhere, or here it comes.

The standard library's client is enough and honours the proxy variables, so that nothing more has to be installed.
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
"""What has a meaning in an address; what else is not plain, such as a space, is sent by its code."""
STATUS_HINTS = {
    401: "gone, private or gated",
    403: "not allowed, or gated",
    404: "no such file there",
    410: "gone",
}


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a server is put up with."""

    tries: int = 5
    """Failures in a row that brought less than `progress` bytes each."""
    connects: int = 2
    """The same, when the server could not be reached at all."""
    progress: int = 1 << 20
    timeout: float = 30.0
    """Seconds without a byte."""
    slowest: float = 1024.0
    """Bytes a second, on average, after `timeout` seconds."""
    first_wait: float = 1.0
    longest_wait: float = 60.0

    def wait(self, failures: int) -> float:
        """Seconds before the next try: doubled with each failure."""
        return min(self.first_wait * 2.0 ** (failures - 1), self.longest_wait)


PATIENCE = Patience()


@dataclass(frozen=True, kw_only=True)
class Access:
    """With what rights an address is asked for."""

    token: str = ""
    """A bearer token, which is sent to the address's own host only."""
    public: bool = False
    """Only hosts of the public internet may be connected to: a stranger named the address."""
    own: str = ""
    """An address of the operator's choice. Its server may be anywhere; what that redirects to may not."""

    def is_own(self, url: str) -> bool:
        """Whether an address is on the operator's server."""
        return bool(self.own) and _origin(url) == _origin(self.own)


OPEN = Access()


class SourceFailed(ModelError):
    """This source cannot give the file; another may. The text holds no token."""

    def __init__(self, text: str) -> None:
        super().__init__(redacted(text))


class Unreachable(SourceFailed):
    """No connection to the server came about."""


class Refused(SourceFailed):
    """The server answered that it does not give the file."""


class Denied(Refused):
    """HTTP 401 or 403: it may give the file to others."""


class Interrupted(Exception):
    """Worth another try. `wait` is what the server asked for, in seconds."""

    def __init__(self, text: str, wait: float | None = None) -> None:
        super().__init__(redacted(text))
        self.wait = wait


class NoConnection(Interrupted):
    """The server could not be reached."""


class RangeRefused(Exception):
    """HTTP 416: the server does not continue from where it was asked to."""


def refuse_private(url: str) -> None:
    """Raise SourceFailed for an address whose host is not one of the public internet, as far as names can be resolved
    here. Connections check what they really connect to; this is for what a proxy connects to, and tells it early."""
    host = urllib.parse.urlsplit(url).hostname or ""
    if not is_public(host):
        raise SourceFailed(f"{host} is not a host of the public internet, and only those are asked for files")


def patiently(
    attempt: Callable[[], Result],
    patience: Patience,
    progress: Callable[[], int],
    sleep: Callable[[float], object] = pause,
) -> Result:
    """Try until it works, or until it failed too often without `progress` (in bytes). Raises SourceFailed."""
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
                raise SourceFailed(f"{stop}; asks to come back in {wait:.0f} s") from stop
            log.info("%s; trying again in %.1f s", stop, wait)
            sleep(wait)


def ask(url: str, headers: dict[str, str], access: Access, timeout: float) -> HTTPResponse:
    """The answer to a GET. Raises SourceFailed, Interrupted or RangeRefused."""
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
    except ValueError as error:  # an address that cannot be read, which a server redirects to
        raise SourceFailed(f"leads to an address that is none ({_reason(error)})") from error
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(f"broken answer ({_reason(error)})") from error


def _origin(url: str) -> tuple[str, str]:
    address = urllib.parse.urlsplit(url)
    return address.scheme, address.netloc.lower()


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to less, and keeps the token on its own host only."""

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
    """Follows redirects to hosts of the public internet, and to the operator's own server."""

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
    """Seconds that a Retry-After header asks for; it holds seconds or a date."""
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
    """The body as it comes. A broken or slow connection raises Interrupted, more than `limit` bytes SourceFailed."""
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
    """Raises SourceFailed for answers that cannot be a weight file."""
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise SourceFailed("sent a web page instead of the file (a login or licence page, or a proxy's)")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise SourceFailed(f"sent the file encoded as {encoding}, which was not asked for")


def stated_length(response: HTTPResponse) -> int | None:
    """Bytes that this answer's body has, if it says so."""
    stated = response.headers.get("Content-Length", "")
    return int(stated) if stated.isdigit() else None


def shows_its_end(response: HTTPResponse) -> bool:
    """Whether a cut body can be told from a whole one."""
    chunked = response.headers.get("Transfer-Encoding", "").lower() == "chunked"
    return chunked or stated_length(response) is not None


def accepts_ranges(response: HTTPResponse) -> bool:
    """Whether the server says, or has just shown, that it sends parts of this file."""
    return response.status == 206 or response.headers.get("Accept-Ranges") == "bytes"


def range_start(response: HTTPResponse) -> int:
    """Where in the file the answer's body begins; 0 for the whole file, -1 for a range that cannot be read."""
    if response.status != 206:
        return 0
    match = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def version_of(response: HTTPResponse) -> str:
    """What identifies this version of the file for If-Range: a strong ETag, else its date, else nothing."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
