"""The one exception that means "the user can fix this": shown as a single line, never as a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Bad input or configuration. The message is one line: what is wrong, with which value, and what is allowed."""


class ConfigError(UserError):
    """A configuration value that cannot be used: names the key, the value and what is allowed."""
