"""Texts without the credentials that this process was given."""

from __future__ import annotations

import os
import re

_SECRET = re.compile(r"SECRET|PASSWORD|TOKEN|CREDENTIAL|ACCESS_KEY|API_KEY")
# NAME=value and "NAME": "value", as shells, logs and JSON write them.
_ASSIGNED = re.compile(
    rb"""(\b[A-Z0-9_]*(?:SECRET|PASSWORD|TOKEN|CREDENTIAL|ACCESS_KEY|API_KEY)[A-Z0-9_]*["']?\s*[=:]\s*["']?)[^\s"',;]+"""
)
_USERINFO = re.compile(r"://[^/\s@]+@")


def redact(text: str) -> str:
    """A text without the credentials that this process was given, by environment or within an address."""
    for name, value in os.environ.items():
        if _SECRET.search(name) and len(value) >= 6:
            text = text.replace(value, "***")
    return _USERINFO.sub("://***@", text)


def scrub(content: bytes) -> bytes:
    """A file that is given away: also without the values beside names of credentials that other processes had."""
    text = redact(content.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")
    return _ASSIGNED.sub(rb"\1***", text)
