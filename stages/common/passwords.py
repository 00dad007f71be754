"""Passwords, tokens and keys: found where they must not be given, and hidden in everything that is shown."""

from __future__ import annotations

import re

# Names that drivers and servers give to a secret in the query of an address.
_SECRET_NAMES = r"(?:password|passwd|passphrase|pwd|secret|token|odbc_connect)"
_IN_QUERY = re.compile(rf"([\w-]*{_SECRET_NAMES}[\w-]*=)[^&\s]+?(?=:?(?:[&\s]|$))", re.IGNORECASE)
# As far as the last @ of a word: a password that is not escaped may itself hold @ and /. After :/// there is a path, and no user.
_BEFORE_HOST = re.compile(r"(://)(?!/)\S*@")


# Names of arguments; not every token is a secret: pad_token and max_tokens are none.
_ARGUMENT = re.compile(
    r"(?:^|_)(?:password|passwd|passphrase|pwd|secrets?|credentials?|(?:api|access|secret|private|account|auth)_?key"
    r"|(?:auth|access|api|bearer|hf|hub|github|gitlab|session|refresh|security|sas)_?token)$|^(?:token|auth|authorization)$"
)
# What well-known services give out.
_VALUE = re.compile(
    r"hf_\w{20,}|sk-[\w-]{20,}|gh[pousr]_\w{30,}|glpat-[\w-]{20,}|AKIA[0-9A-Z]{16}|xox[abp]-[\w-]{10,}"
    r"|eyJ[\w-]{10,}\.[\w-]+\.[\w-]+|-----BEGIN [A-Z ]*PRIVATE KEY"
)


def is_secret_name(name: str) -> bool:
    """Whether an argument or environment variable of this name holds a secret: `api_key`, `HF_TOKEN`, `dbPassword`."""
    return bool(_ARGUMENT.search(re.sub(r"(?<=[a-z0-9])(?=[A-Z])|-", "_", name).lower()))


def is_secret(name: str, value: object) -> bool:
    """Whether the value of an argument is a secret, by either's looks; none is what names the environment's: `${oc.env:API_KEY}`."""
    if not isinstance(value, str) or not value or "${oc.env:" in value:
        return False
    return is_secret_name(name) or bool(_VALUE.match(value)) or any(has_password(address) for address in addresses(value))


def has_password(address: str) -> bool:
    """Whether an address like `scheme://user:password@host/path?name=value` holds a password or token; the scheme may be missing.

    Where a password that is not escaped starts and ends is a guess, and this one is generous. A user alone is no secret,
    except of a web server, where it may be a token.
    """
    scheme, rest = _split(address)
    if _IN_QUERY.search(rest):
        return True
    user, at, _ = rest.rpartition("@")
    return bool(at) and not rest.startswith("/") and (":" in user or scheme.startswith("http"))


def addresses(text: str) -> list[str]:
    """The words of `text`, such as a list or a section in YAML, that are addresses with a scheme."""
    return re.findall(r"""[^\s,'"{}\[\]=]*://[^\s,'"]+""", text)


def is_escaped(address: str) -> bool:
    """Whether the address can be read in one way only: its one @, if any, stands before the host."""
    _, rest = _split(address)
    return rest.startswith("/") or rest.count("@") == re.split("[/?#]", rest, maxsplit=1)[0].count("@") <= 1


def without_user(address: str) -> str:
    """The address without user and password before its host."""
    return _BEFORE_HOST.sub(r"\1", address)


def without_passwords(text: str) -> str:
    """`text` with the users and passwords of all addresses in it replaced by `***`."""
    return _IN_QUERY.sub(r"\1***", _BEFORE_HOST.sub(r"\1***@", text))


def _split(address: str) -> tuple[str, str]:
    """Scheme, which may be empty, and what follows it."""
    scheme, separator, rest = address.partition("://")
    return (scheme, rest) if separator else ("", address)
