"""What a refusal has to say, for the tests of it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import servers

from jobs.s3 import S3Store
from jobs.stores import Refused


def refused(store: S3Store, *said: str, ask: Callable[[S3Store], object] | None = None) -> str:
    """Return the one line of a refusal that came at once and says all that is in `said`."""
    started = time.monotonic()
    with pytest.raises(Refused) as caught:
        ask(store) if ask else store.write("run/a key", b"x")
    assert time.monotonic() - started < 5
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    assert servers.SECRET_KEY not in text
    assert store.bucket in text
    assert store.access.endpoint in text
    for word in said:
        assert word in text, text
    return text
