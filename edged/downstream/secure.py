"""A listener's certificate: for TLS over TCP and for QUIC, loaded again when its files change."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from edged.upstream.tls import TlsConfigError

ALPN = ("h2", "http/1.1")
_NO_PASSWORD = ""  # an encrypted key is an error, and no question on the terminal


class CertificateError(TlsConfigError):
    """The files cannot be used; the text names the file and the reason."""


class Certificate:
    """A chain and its key, from files that may be replaced while they serve.

    The context is one and the same for ever: what is loaded into it serves the next handshake.
    """

    def __init__(
        self, chain_file: Path, key_file: Path, client_ca_file: Path | None = None
    ) -> None:
        """``client_ca_file``: clients are asked for certificates of these authorities, and are let
        in without one. Raises `CertificateError`.
        """
        self.chain_file = chain_file
        self.key_file = key_file
        self.client_ca_file = client_ca_file
        self.serial = 0
        """Counts what has been loaded."""
        self.context = _server_context(client_ca_file)
        self.context.set_alpn_protocols(list(ALPN))
        self._stamp = self._look()
        self._load()

    def reload_if_changed(self) -> bool:
        """Load the files if they are others than before; whether they were.

        Raises `CertificateError` once per change that cannot be used; then the old pair serves on.
        """
        stamp = self._look()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        self._load()
        return True

    def _load(self) -> None:
        check(self.chain_file, self.key_file)  # a pair that does not match must not be half loaded
        self.context.load_cert_chain(self.chain_file, self.key_file, _NO_PASSWORD)
        self.serial += 1

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        try:
            stats = [os.stat(file) for file in (self.chain_file, self.key_file)]
        except OSError:
            return ()  # between two renames; the next look tells
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)


def check(chain_file: Path, key_file: Path, client_ca_file: Path | None = None) -> None:
    """Raises `CertificateError` if the files are no pair, or the last holds no certificate."""
    for file in (chain_file, key_file):
        try:
            with open(file, "rb") as stream:
                stream.read(1)
        except OSError as error:
            raise CertificateError(f"{file}: {_reason(error)}") from error
    context = _server_context(client_ca_file)
    try:
        context.load_cert_chain(chain_file, key_file, _NO_PASSWORD)
    except (OSError, ValueError) as error:
        raise CertificateError(f"{chain_file} and {key_file}: {_reason(error)}") from error


def _server_context(client_ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if client_ca_file is not None:
        try:
            context.load_verify_locations(cafile=client_ca_file)
        except OSError as error:
            raise CertificateError(f"{client_ca_file}: {_reason(error)}") from error
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        words = {
            "KEY_VALUES_MISMATCH": "the key does not belong to the certificate",
            "NO_START_LINE": "not in PEM form",
            "PEM_LIB": "not in PEM form",
        }
        return words.get(error.reason or "", error.reason or "not in PEM form")
    if isinstance(error, OSError):
        return error.strerror or "cannot be read"
    return str(error)
