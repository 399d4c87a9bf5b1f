"""Owns the boto3 client: its settings and its two hooks. Must not send anything."""

from __future__ import annotations

import logging
import os
from typing import Any

from jobs.access import Access
from jobs.s3faults import check_whole, stay

CONNECT_SECONDS, READ_SECONDS = 10, 60


def connect(access: Access, connections: int) -> Any:
    """Return a client that asks once and neither adds nor checks a checksum by itself.

    Args:
        access: how the store is spoken to, with its presets.
        connections: how many it may hold open.
    """
    import boto3
    from botocore.config import Config

    style: Any = access.addressing
    config = Config(
        signature_version="s3v4",
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=connections,
        tcp_keepalive=True,
        retries={"total_max_attempts": 1, "mode": "standard"},  # s3faults.retrying does it
        # We send and compare checksums ourselves; newer defaults are refused by OBS and others.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # The signature covers the checksum header, so the body need not be hashed again.
        s3={"addressing_style": style, "payload_signing_enabled": access.checksum == "none"},
    )
    session = boto3.session.Session()
    # boto3 itself knows AWS_DEFAULT_REGION only; the other SDKs take this one.
    region = access.region or os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
    client = session.client(
        "s3", endpoint_url=access.endpoint or None, region_name=region, config=config
    )
    # It logs a traceback for an answer that was cut; check_whole tells of that.
    logging.getLogger("urllib3.connection").setLevel(logging.ERROR)
    client.meta.events.register("before-parse.s3", check_whole)
    client.meta.events.register_first("needs-retry.s3", stay)
    return client
