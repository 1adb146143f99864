"""Keys and certificates of a federation: a small certificate authority for the SuperLink, and a key pair a SuperNode.

The authority is for tests and small federations: its key lies in a file. Who runs a real one takes certificates from
the authority of the house, and needs of this module only the nodes' keys.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.clock import Clock
from common.errors import InvalidSetting

DAYS = 365
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""The SuperLink's own processes reach it by these."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority.

    Parameters
    ----------
    key
        Signs.
    certificate
        Whom it is trusted by knows it.
    """

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def new(cls, clock: Clock, days: int = DAYS) -> "Authority":
        """Make one that is good for some days from now."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Anabranch federation")])
        signs = {"key_cert_sign": True, "crl_sign": True, "digital_signature": False}
        certificate = (
            _builder(name, name, key.public_key(), clock, days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(**signs), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    @property
    def pem(self) -> bytes:
        """The certificate, to be given to every node."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def server(self, hosts: Sequence[str], clock: Clock, days: int = DAYS) -> tuple[bytes, bytes]:
        """Return certificate and private key, in PEM, of a server that is reached by these names and addresses.

        Raises
        ------
        InvalidSetting
            When a host is neither a name nor an address.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        everyone = list(dict.fromkeys([*hosts, *LOOPBACK]))
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, everyone[0][:64])])
        issuer = self.certificate
        signs = {"key_cert_sign": False, "crl_sign": False, "digital_signature": True}
        authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = (
            _builder(name, issuer.subject, key.public_key(), clock, days)
            .add_extension(x509.SubjectAlternativeName([_host(each) for each in everyone]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(**signs), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(authority_key, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM), _private(key)


def node_key() -> tuple[bytes, bytes]:
    """Return a SuperNode's private and public key, in OpenSSH's form on P-384, as Flower reads them."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, public + b"\n"


def write_secret(path: Path, content: bytes) -> None:
    """Write a file that its owner alone may read, from the first byte on.

    Raises
    ------
    InvalidSetting
        When it is there already: a key that is in use is not replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise InvalidSetting(
            f"{path} is there already",
            expected="a folder without keys",
            consequence="it was left as it is",
            mend="choose another folder, or delete the key if nobody uses it",
        ) from error
    with os.fdopen(handle, "wb") as file:
        file.write(content)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, clock: Clock, days: int
) -> x509.CertificateBuilder:
    now = datetime.fromtimestamp(clock() / 1000, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks of other machines may be behind
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _usage(*, key_cert_sign: bool, crl_sign: bool, digital_signature: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host.encode("idna").decode("ascii"))
    except (UnicodeError, ValueError) as error:
        raise InvalidSetting(f"host {host!r}", expected="a host name or an address") from error
