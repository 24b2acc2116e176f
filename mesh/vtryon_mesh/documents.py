"""YAML as Envoy, Istio and Prometheus read it."""

from __future__ import annotations

from typing import Any

import yaml


def write(*documents: dict[str, Any]) -> str:
    """Write documents without YAML aliases: repeated values are written out."""
    return yaml.dump_all(documents, Dumper=_Plain, sort_keys=False, width=100)


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        """Make no anchors."""
        return True
