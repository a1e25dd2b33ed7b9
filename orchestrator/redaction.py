"""Texts without the credentials that this process was given."""

from __future__ import annotations

import os
import re

_SECRET = re.compile(r"SECRET|PASSWORD|TOKEN|CREDENTIAL|ACCESS_KEY|API_KEY")


_USERINFO = re.compile(r"://[^/\s@]+@")


def redact(text: str) -> str:
    """A text without the credentials that this process was given, by environment or within an address."""
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 6:
            text = text.replace(value, "***")
    return _USERINFO.sub("://***@", text)
