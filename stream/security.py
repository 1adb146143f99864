"""How to speak to a broker that asks who is there: TLS and SASL, the same for every client.

The settings are a TOML file (`--security FILE`)::

    protocol = "SASL_SSL"            # PLAINTEXT, SSL, SASL_PLAINTEXT, SASL_SSL
    ca_file = "ca.pem"               # who signed the broker's certificate
    certificate_file = "me.pem"      # where the broker wants to see one of ours
    key_file = "me.key"
    key_password_file = "key.secret"
    mechanism = "SCRAM-SHA-512"      # PLAIN, SCRAM-SHA-256, SCRAM-SHA-512
    user = "learner"
    password_file = "password.secret"

Paths are taken from where the file lies. A password may come from the environment instead (`ANABRANCH_KAFKA_PASSWORD`,
`ANABRANCH_KAFKA_KEY_PASSWORD`); it is never a setting of its own, so it cannot end in a shell's history or in the file.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from common.errors import InvalidSetting, UnknownName

Protocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
PROTOCOLS: tuple[Protocol, ...] = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
PASSWORD = "ANABRANCH_KAFKA_PASSWORD"  # noqa: S105  # the variable's name, not a password
KEY_PASSWORD = "ANABRANCH_KAFKA_KEY_PASSWORD"  # noqa: S105  # the variable's name, not a password
_FILES = ("ca_file", "certificate_file", "key_file")
_SECRETS = {"password": PASSWORD, "key_password": KEY_PASSWORD}


class Secret:
    """A text that shows itself only to who asks: its repr, in a log or a traceback, is three stars.

    Examples
    --------
    >>> from stream.security import Secret
    >>> Secret("open sesame")
    Secret('***')
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


class _Hidden(str):
    """A text for a client that logs its settings, as kafka-python does at level DEBUG: by their repr."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


@dataclass(frozen=True, slots=True)
class Security:
    """What a broker asks for.

    Parameters
    ----------
    protocol
        One of `PROTOCOLS`.
    ca_file, certificate_file, key_file
        PEM files: who is trusted, and who we are.
    key_password
        Of the key file.
    mechanism
        One of `MECHANISMS`.
    user, password
        Who we are under SASL.
    check_hostname
        Whether the broker's certificate must name its host.
    """

    protocol: Protocol = "PLAINTEXT"
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    key_password: Secret | None = None
    mechanism: str | None = None
    user: str | None = None
    password: Secret | None = None
    check_hostname: bool = True

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UnknownName("security protocol", self.protocol, list(PROTOCOLS))
        if self.protocol.startswith("SASL"):
            if self.mechanism not in MECHANISMS:
                raise UnknownName("SASL mechanism", str(self.mechanism), list(MECHANISMS))
            if not self.user or self.password is None:
                raise InvalidSetting(
                    f"{self.protocol} without a user or a password",
                    expected="user, and password_file or the environment variable " + PASSWORD,
                )
        for name in _FILES:
            path = getattr(self, name)
            if path is not None and not path.is_file():
                raise InvalidSetting(f"{name} {path}", expected="a file")

    def kafka_options(self) -> dict[str, Any]:
        """Return the options as kafka-python names them; secrets are in the clear, so only a client may get them."""
        if self == PLAIN:
            return {}
        options: dict[str, Any] = {
            "security_protocol": self.protocol,
            "ssl_cafile": _text(self.ca_file),
            "ssl_certfile": _text(self.certificate_file),
            "ssl_keyfile": _text(self.key_file),
            "ssl_password": _Hidden(self.key_password.reveal()) if self.key_password else None,
            "ssl_check_hostname": self.check_hostname,
        }
        if self.protocol.startswith("SASL"):
            options |= {
                "sasl_mechanism": self.mechanism,
                "sasl_plain_username": self.user,
                "sasl_plain_password": _Hidden(self.password.reveal()) if self.password else None,
            }
        return options

    def librdkafka_options(self) -> dict[str, Any]:
        """Return the options as librdkafka names them; secrets are in the clear, so only a client may get them."""
        found: dict[str, Any] = {
            "security.protocol": self.protocol,
            "ssl.ca.location": _text(self.ca_file),
            "ssl.certificate.location": _text(self.certificate_file),
            "ssl.key.location": _text(self.key_file),
            "ssl.key.password": self.key_password.reveal() if self.key_password else None,
            "ssl.endpoint.identification.algorithm": None if self.check_hostname else "none",
            "sasl.mechanism": self.mechanism,
            "sasl.username": self.user,
            "sasl.password": self.password.reveal() if self.password else None,
        }
        return {name: value for name, value in found.items() if value is not None}


PLAIN = Security()


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def read_security(path: Path | None, environment: Mapping[str, str] = os.environ) -> Security:
    """Read the settings of a broker's security; no file is a broker that asks for nothing.

    Raises
    ------
    InvalidSetting
        When the file cannot be read, has keys that are none, or a value that cannot be.
    UnknownName
        When it names no known protocol or mechanism.
    """
    if path is None:
        return PLAIN
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidSetting(f"security settings {path}: {error}", expected="a TOML file") from error
    known = {"protocol", "mechanism", "user", "check_hostname", *_FILES, *(f"{name}_file" for name in _SECRETS)}
    for name in table:
        if name not in known:
            raise UnknownName(f"key in {path}", name, sorted(known))
    if not isinstance(check := table.get("check_hostname", True), bool):
        raise InvalidSetting(f"check_hostname {check!r} in {path}", expected="true or false")
    texts = {name: str(value) for name, value in table.items()}
    files = {name: (path.parent / texts[name] if name in texts else None) for name in _FILES}
    return Security(
        protocol=cast(Protocol, texts.get("protocol", "PLAINTEXT")),
        ca_file=files["ca_file"],
        certificate_file=files["certificate_file"],
        key_file=files["key_file"],
        key_password=_secret("key_password", texts, path, environment),
        mechanism=texts.get("mechanism"),
        user=texts.get("user"),
        password=_secret("password", texts, path, environment),
        check_hostname=check,
    )


def _secret(name: str, texts: Mapping[str, str], path: Path, environment: Mapping[str, str]) -> Secret | None:
    """Return the secret of the environment, else that of the file which the settings name."""
    if environment.get(_SECRETS[name]):
        return Secret(environment[_SECRETS[name]])
    named = texts.get(f"{name}_file")
    if named is None:
        return None
    try:
        return Secret((path.parent / named).read_text("utf-8").rstrip("\r\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting(
            f"{name}_file {path.parent / named}: {error}", expected="a file with the secret"
        ) from error
