"""A certificate authority for tests: it signs a server and a client, and revokes the server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_NOW = datetime.now(UTC)
_LATER = _NOW + timedelta(days=2)


def make_certificates(folder: Path) -> None:
    """Write ca.crt, server.crt, server.key, client.crt, client.key, empty.crl and server.crl."""
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _sign(_name("Test CA"), ca_key, _name("Test CA"), ca_key, is_ca=True)
    (folder / "ca.crt").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    serial = 0
    for name in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        signed = _sign(_name(name), key, ca.subject, ca_key, is_ca=False)
        (folder / f"{name}.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        secret = folder / f"{name}.key"
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        secret.chmod(0o600)
        serial = serial or signed.serial_number
    _revoke(folder / "empty.crl", ca.subject, ca_key, None)
    _revoke(folder / "server.crl", ca.subject, ca_key, serial)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _sign(
    subject: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    is_ca: bool,
) -> x509.Certificate:
    names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOW - timedelta(days=1))
        .not_valid_after(_LATER)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if not is_ca:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _revoke(
    path: Path, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, serial: int | None
) -> None:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer)
        .last_update(_NOW - timedelta(days=1))
        .next_update(_LATER)
    )
    if serial is not None:
        revoked = x509.RevokedCertificateBuilder().serial_number(serial)
        builder = builder.add_revoked_certificate(
            revoked.revocation_date(_NOW - timedelta(hours=1)).build()
        )
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
