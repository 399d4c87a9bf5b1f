"""Owns what can go wrong between us and an S3 server: botocore's exceptions -> ours, and retries.

Must not know what is asked for. Three outcomes: no such object (FileNotFoundError), answered for
good (Refused, with the setting to mend), away (any other OSError, worth another try).
"""

from __future__ import annotations

import datetime as dt
import email.utils
import logging
import os
import random
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from jobs.stores import Refused

log = logging.getLogger("jobs.s3")
T = TypeVar("T")

ATTEMPTS = 6
FIRST_WAIT, LAST_WAIT = 0.2, 5.0
"""Seconds; full jitter: a uniform wait from zero to a bound that doubles (M. Brooker, Exponential
Backoff And Jitter, AWS Architecture Blog, 2015). Outages longer than all the waits are the
caller's, which knows its deadline."""
PATIENCE_SECONDS = 30.0
"""No further try after that long: one that hung for a minute is the caller's matter too."""
LONGEST_RETRY_AFTER = 60.0
"""Seconds that a server's Retry-After is followed; longer ones go to the caller's own waits."""

_MISSING = {"NoSuchKey", "NotFound", "404"}
_BUSY_400 = {
    "BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch", "InvalidDigest",
}  # fmt: skip
"""Codes of status 400 that tell of a body damaged or cut on its way."""
_SKEW = {"RequestTimeTooSkewed", "RequestExpired"}
KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken",
         "AuthFailure", "InvalidClientTokenId", "XAdminUserNotFound"}  # fmt: skip
_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "TemporaryRedirect", "Redirect",
           "IllegalLocationConstraintException"}  # fmt: skip


class Away(OSError):
    """The server did not answer, or asked to come again; `after` is its Retry-After in seconds."""

    def __init__(self, text: str, after: float = 0.0) -> None:
        super().__init__(text)
        self.after = after


class Outdated(OSError):
    """A condition of the request does not hold: the object is another one by now."""


class NoUpload(OSError):
    """The multipart upload is gone: completed, aborted or collected."""


def retrying(place: str, action: Callable[[], T], attempts: int = ATTEMPTS) -> T:
    """Return what `action` returns; while the server is away try again a few times.

    Args:
        place: endpoint, bucket and key, for messages.
        action: one request; it may raise anything that botocore or urllib3 raise.
        attempts: how often it is tried.

    Raises:
        FileNotFoundError: no such object.
        Refused: the server has answered for good.
        OSError: it was away each time, or a condition failed.
    """
    bound, started = FIRST_WAIT, time.monotonic()
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except (FileNotFoundError, Refused, Outdated, NoUpload):
            raise
        except Exception as error:
            known = translate(error, place)
            cause = None if known is error else error
            if not isinstance(known, Away):
                raise known from cause
            late = time.monotonic() - started > PATIENCE_SECONDS
            if attempt == attempts or late or known.after > LONGEST_RETRY_AFTER:
                raise known from cause
            wait = max(random.uniform(0, bound), known.after)
            if attempt == 2:  # once a request: whoever asks it tells when all its tries are spent
                log.info("retry=%d wait_s=%.1f error=%r", attempt, wait, str(known))
        time.sleep(wait)
        bound = min(2 * bound, LAST_WAIT)
    raise AssertionError("unreachable")


def translate(error: Exception, place: str) -> Exception:
    """Return the error of ours that an exception stands for; a bug is returned as it is."""
    import urllib3.exceptions
    from botocore import exceptions as boto

    if isinstance(error, boto.ClientError):
        return _answered(error.response, place)
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return Refused(f"{place}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(error, boto.ProfileNotFound | boto.CredentialRetrievalError):
        return Refused(f"{place}: credentials: {error}")
    if isinstance(error, boto.SSLError | urllib3.exceptions.SSLError):
        if "No such file" in str(error):
            bundle = os.environ.get("AWS_CA_BUNDLE", "")
            return Refused(f"{place}: AWS_CA_BUNDLE={bundle}: no such file")
        if "CERTIFICATE" in str(error).upper():
            hint = "AWS_CA_BUNDLE names the file of the authority that signed it"
            return Refused(f"{place}: its certificate is not trusted; {hint}")
        return Away(f"{place}: TLS: {_short(error)}")
    if isinstance(error, boto.EndpointProviderError):
        return Refused(f"{place}: {_short(error)}; correct store_endpoint")
    if isinstance(
        error, boto.ParamValidationError | boto.InvalidRegionError | boto.UnknownServiceError
    ):
        return Refused(f"{place}: {_short(error)}")
    if isinstance(error, Away):
        return error
    network = ConnectionError | TimeoutError | socket.gaierror
    if isinstance(error, OSError) and not isinstance(error, network):
        return error  # of a file of ours
    if isinstance(error, boto.BotoCoreError | urllib3.exceptions.HTTPError | OSError):
        return Away(f"{place}: {_short(error)}")
    if isinstance(error, ValueError) and "timestamp" in str(error):
        return Away(f"{place}: the answer was cut: {_short(error)}")
    if isinstance(error, ValueError) and "endpoint" in str(error).lower():
        return Refused(f"{place}: {_short(error)}")
    return error


def _answered(response: Mapping[str, Any], place: str) -> Exception:
    """Return what an answer of status 300 or more means."""
    facts = response.get("ResponseMetadata", {})
    status = int(facts.get("HTTPStatusCode", 0))
    given = str(response.get("Error", {}).get("Code", ""))
    code = given or str(status)
    message = str(response.get("Error", {}).get("Message", ""))
    headers = facts.get("HTTPHeaders", {})
    told = f"{place}: {code} {message}".rstrip(" .")
    if code == "NoSuchUpload":
        return NoUpload(told)
    if code == "NoSuchBucket":
        return Refused(f"{place}: no such bucket; create it, or correct store or store_endpoint")
    if given in _MISSING:
        return FileNotFoundError(told)
    if code in ("PreconditionFailed", "412") or status in (409, 412):
        return Outdated(told)
    if code in _SKEW:
        _follow_clock(headers)
        return Away(told)
    if code in KEYS:
        return Refused(f"{told}; check the access key and its secret")
    if code in _REGION or 300 <= status < 400:
        where = headers.get("location") or headers.get("x-amz-bucket-region") or ""
        to = f" (it names {where})" if where else ""
        return Refused(f"{told}{to}; correct store_region or store_endpoint")
    if status in (401, 403):
        return Refused(f"{told}; the key may not do this here")
    if status in (408, 425, 429) or (status >= 500 and status != 501) or code in _BUSY_400:
        return Away(told, _seconds(headers.get("retry-after", "")))
    if status in (400, 501) and "hecksum" in message + code:
        return Refused(f"{told}; store_checksum md5 does without")
    return Refused(told)


def check_whole(response_dict: Mapping[str, Any], **_: object) -> None:
    """Refuse an answer that was cut within its headers: nobody can say where its body ends.

    Raises:
        Away: neither a length nor chunks.
    """
    status, headers = response_dict["status_code"], response_dict["headers"]
    framed = headers.get("content-length", "").isdigit() or "transfer-encoding" in headers
    if not framed and status not in (204, 304):
        raise Away("the answer was cut")


def stay(response: Any, operation: Any, **_: object) -> None:
    """Keep botocore from following a redirect by asking the same endpoint, for ever.

    Raises:
        ClientError: the redirect.
    """
    from botocore.exceptions import ClientError

    if response is not None and 300 <= response[0].status_code < 400:
        raise ClientError(response[1], operation.name)


def _seconds(text: str) -> float:
    """Return a Retry-After in seconds; it may be a number or a date (RFC 9110, 10.2.3)."""
    if text.strip().isdigit():
        return float(text)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return 0.0
    return max(0.0, when.timestamp() - time.time())


def _follow_clock(headers: Mapping[str, str]) -> None:
    """Sign by the server's clock from now on, which refuses what is 15 minutes off (S3 API)."""
    try:
        theirs = email.utils.parsedate_to_datetime(headers.get("date", ""))
    except (TypeError, ValueError):
        return
    offset = theirs - dt.datetime.now(dt.UTC)
    import botocore.auth
    import botocore.compat

    # botocore has no seam for it: its signers take the time from this function.
    compat: Any = botocore.compat
    signers: list[Any] = [botocore.auth]
    real = compat.get_current_datetime

    def now(remove_tzinfo: bool = True) -> dt.datetime:
        found: dt.datetime = real(remove_tzinfo)
        return found + offset

    if compat.HAS_CRT:
        import botocore.crt.auth

        signers.append(botocore.crt.auth)
    for signer in signers:
        signer.get_current_datetime = now
    log.warning("clock=off by_s=%.0f; signing by the server's", -offset.total_seconds())


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
