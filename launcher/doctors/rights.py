"""Owns what the launcher has to be allowed on a cluster, read from the manifests that grant it.

Must not ask a cluster. k8s/base/rbac.yaml and its like are the one list; they travel in the wheel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launcher.errors import Misconfigured

Grant = Literal["base", "node-facts", "kueue", "volcano"]
_FILES: Mapping[Grant, str] = {
    "base": "base/rbac.yaml",
    "node-facts": "components/node-facts/rbac.yaml",
    "kueue": "queues/kueue/rbac.yaml",
    "volcano": "queues/volcano/rbac.yaml",
}
_VERB = re.compile(r"^ *- ([a-z]+) +# (.+)$", re.MULTILINE)
"""A verb and what it is for, as the files write each of them."""


@dataclass(frozen=True, slots=True)
class Right:
    """One verb on one kind of object."""

    group: str
    resource: str
    """With its subresource, such as pods/log."""
    verb: str
    purpose: str = ""
    """What the launcher does with it."""
    everywhere: bool = False
    """In all namespaces, or of the cluster itself."""

    def __str__(self) -> str:
        """Return it as `kubectl auth can-i` takes it."""
        group = f".{self.group}" if self.group else ""
        kind, _, sub = self.resource.partition("/")
        return f"{self.verb} {kind}{group}{f'/{sub}' if sub else ''}"

    @property
    def for_doctor(self) -> bool:
        """Return whether nothing but doctor uses it."""
        return self.purpose.startswith("doctor")


def granted(grant: Grant) -> tuple[Right, ...]:
    """Return the rights that a manifest grants, but for those on objects of a certain name.

    Such an object is a setting's, and asking for it tells by itself.

    Raises:
        Misconfigured: the file was edited into something that grants nothing.
    """
    import yaml

    path = _path(grant)
    text = path.read_text("utf-8")
    try:
        found = tuple(_rights(list(yaml.safe_load_all(text)), text))
    except (yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        raise Misconfigured(f"{path}: is no manifest of roles") from error
    if not found:
        raise Misconfigured(f"{path}: grants nothing")
    return found


def _path(grant: Grant) -> Path:
    package = Path(__file__).parents[1]
    packaged = package / "bases" / "rbac" / f"{grant}.yaml"  # in a wheel
    return packaged if packaged.is_file() else package.parent / "k8s" / _FILES[grant]


def _rights(documents: list[Any], text: str) -> Iterator[Right]:
    """Yield the rights in the order of the file, each with the comment that stands beside it."""
    comments = iter(_VERB.findall(text))
    for document in documents:
        everywhere = document["kind"] == "ClusterRole"
        for rule in document.get("rules") or ():
            for verb in rule["verbs"]:
                noted, purpose = next(comments, ("", ""))
                if "resourceNames" in rule:
                    continue
                for group in rule["apiGroups"]:
                    for resource in rule["resources"]:
                        why = purpose if noted == verb else ""
                        yield Right(group, resource, verb, why, everywhere)
