"""Owns what it means that a node cannot pull an image. Pure; reads messages, no object.

The words are containerd's, Docker's and the registries' own.
"""

from __future__ import annotations

import re

from launcher.why.reasons import Reason

PULLING = ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ImageInspectError")
_HOST = re.compile(r"lookup ([^ :]+)")
# In this order: a registry that hides what one may not see says `not found` and `denied` at once.
_CAUSES = (
    (
        r"no match for platform",
        "it is not built for the architecture of {node}",
        "build it for that architecture too, or choose another --image",
    ),
    (
        r"insufficient_scope|may require|pull access denied",
        "it does not exist, or these credentials may not pull it",
        "check the name; a private image needs image_pull_secret in launcher.toml",
    ),
    (
        r"\b401\b|unauthorized|authentication required|no basic auth",
        "the registry wants credentials (unauthorized)",
        "set image_pull_secret in launcher.toml to a Secret of type kubernetes.io/dockerconfigjson",
    ),
    (
        r"\b403\b|forbidden|denied",
        "the registry does not let these credentials pull it (forbidden)",
        "ask for the right to pull it, or set another image_pull_secret in launcher.toml",
    ),
    (
        r"no such host|server misbehaving|name resolution",
        "there is no host {host}",
        "check the registry in --image; else the node's DNS is to be looked at",
    ),
    (
        r"toomanyrequests|\b429\b",
        "the registry has had too many requests",
        "wait; with credentials (image_pull_secret) registries allow more",
    ),
    (
        r"x509|certificate",
        "the node does not trust the registry's certificate",
        "the node's containerd has to know the registry's authority: ask the administrator",
    ),
    (
        r"http response to https client",
        "the registry speaks plain HTTP, which the node does not accept",
        "the node's containerd has to be told: ask the administrator",
    ),
    (
        r"no space left",
        "the disk of {node} is full",
        "ask the administrator to make room on the node",
    ),
    (
        r"connection re(fused|set)|i/o timeout|deadline exceeded|no route|\beof\b|\b50[0-9]\b",
        "the registry does not answer {node}",
        "see whether the node reaches the registry: proxy, firewall, outage",
    ),
    (
        r"not found|manifest unknown|\b404\b",
        "the registry has no such image or tag (not found)",
        "check name and tag, push the image, or choose another --image",
    ),
)


def meaning(image: str, node: str, reason: str, message: str) -> Reason | None:
    """Return why an image cannot be had; None if `reason`, of a waiting container, is another.

    Args:
        image: as the pod names it.
        node: where it is pulled.
        reason: of the waiting container.
        message: the kubelet's.
    """
    if reason == "InvalidImageName":
        line = f"image {image}: is no name of an image"
        step = "registry/name in lower case, with tag or digest; cancel it and submit again"
        return Reason(word="image", line=line, next_step=step, stuck=True)
    if reason == "ErrImageNeverPull":
        line = f"image {image}: is not on {node}, and imagePullPolicy is Never"
        step = "load it there, or set another imagePullPolicy in the base"
        return Reason(word="image", line=line, next_step=step, stuck=True)
    if reason not in PULLING:
        return None
    for pattern, what, step in _CAUSES:
        if re.search(pattern, message, re.IGNORECASE):
            found = _HOST.search(message)
            host = found[1] if found else image.partition("/")[0]
            line = f"image {image}: {what.format(node=node, host=host)}"
            return Reason(word="image", line=line, next_step=step, stuck=True)
    told = message.rpartition("failed to")[2] or message or "it cannot be pulled"
    line = f"image {image}: {node} cannot pull it: {told.strip()}"
    return Reason(word="image", line=line, next_step="check --image and the registry", stuck=True)
