"""Owns how an object store is spoken to: endpoint, region, addressing, checksums; their presets.

Pure; must not hold a credential: those come from boto3's own chain (environment, files, roles).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from urllib.parse import urlsplit

from jobs.errors import BadSpec

VARIABLE = "JOB_STORE_"
AUTO = "auto"
ADDRESSING = (AUTO, "path", "virtual")
CHECKSUMS = (AUTO, "sha256", "md5", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach a bucket; what is empty or `auto` follows from the endpoint."""

    endpoint: str = ""
    """http(s)://host[:port]; empty means boto3's own: AWS_ENDPOINT_URL_S3, a profile, or AWS."""
    region: str = ""
    """Region to sign for; empty means boto3's own, and us-east-1 if there is none."""
    addressing: str = AUTO
    """path (endpoint/bucket/key) or virtual (bucket.endpoint/key)."""
    checksum: str = AUTO
    """What proves an upload: sha256 (x-amz-checksum-sha256), md5 (Content-MD5, ETag) or none."""

    @classmethod
    def read(cls, variables: Mapping[str, str] = os.environ) -> Access:
        """Return what JOB_STORE_ENDPOINT, _REGION, _ADDRESSING and _CHECKSUM say.

        Raises:
            BadSpec: a value that none of them can have.
        """
        given = {field.name: variables.get(_variable(field.name), "") for field in fields(cls)}
        found = cls(**{name: value for name, value in given.items() if value})
        for name, value, known in (
            ("addressing", found.addressing, ADDRESSING),
            ("checksum", found.checksum, CHECKSUMS),
        ):
            if value not in known:
                raise BadSpec(f"{_variable(name)}: {value!r} is none of {', '.join(known)}")
        return found

    def variables(self) -> dict[str, str]:
        """Return the variables that `read` makes this of; only what is set."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {_variable(name): value for name, value in values.items() if value not in ("", AUTO)}


def preset(access: Access) -> Access:
    """Return the access with every `auto` decided by the endpoint's host.

    AWS and Huawei OBS want the bucket in the host name; OBS refuses or ignores the checksum headers
    of 2024, so that its uploads are proven by Content-MD5 and ETag. Everything else that speaks S3
    (MinIO, Ceph, R2, versitygw) takes path addressing and SHA-256.
    """
    host = (urlsplit(access.endpoint).hostname or "").lower()
    amazon = host == "" or host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
    huawei = host.startswith("obs.") or ".obs." in host or host.endswith(".myhuaweicloud.com")
    found = access
    if found.addressing == AUTO:
        # An endpoint of boto3's own may be any server: `auto` is boto3's rule for it.
        style = "virtual" if huawei or (amazon and host) else AUTO if amazon else "path"
        found = replace(found, addressing=style)
    if found.checksum == AUTO:
        found = replace(found, checksum="md5" if huawei else "sha256")
    if not found.region and host.endswith(".r2.cloudflarestorage.com"):
        found = replace(found, region="auto")
    return found


def _variable(name: str) -> str:
    return VARIABLE + name.upper()
