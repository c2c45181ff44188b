"""Sealing: what must not be readable at rest, encrypted with a key that is never on the bus. Owns the sealed form.

AES-256-GCM: one byte of version, four that name the key, twelve of nonce, then the ciphertext with its tag. The
`purpose` is authenticated: what was sealed as one secret cannot be put in another's place.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os

from squall.errors import InvalidError, SecretsKeyError

KEY_BYTES, NAME_BYTES, NONCE_BYTES = 32, 4, 12
_VERSION = b"\x01"


class Sealer:
    """Seals and opens. The first key seals, every one opens: that is how a key is replaced."""

    def __init__(self, keys: str) -> None:
        """`keys`: base64 texts of 32 bytes, separated by commas; empty for none. Raises `InvalidError`."""
        self._keys = {_name(key): key for key in map(_decoded, filter(None, map(str.strip, keys.split(","))))}

    def seal(self, text: bytes, purpose: str) -> bytes:
        """`text`, readable with the key and for that purpose only. Raises `SecretsKeyError`."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # 15 ms, for those who have secrets

        name, key = self._first()
        nonce = os.urandom(NONCE_BYTES)
        return _VERSION + name + nonce + AESGCM(key).encrypt(nonce, text, purpose.encode())

    def open(self, sealed: bytes, purpose: str) -> bytes:
        """The inverse. Raises `SecretsKeyError`."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self._first()
        name, rest = sealed[1 : 1 + NAME_BYTES], sealed[1 + NAME_BYTES :]
        key = self._keys.get(name)
        if sealed[:1] != _VERSION or key is None:
            raise SecretsKeyError(f"{purpose} was sealed with a key that is not here")
        try:
            return AESGCM(key).decrypt(rest[:NONCE_BYTES], rest[NONCE_BYTES:], purpose.encode())
        except InvalidTag:
            raise SecretsKeyError(f"{purpose} was changed where it is stored") from None

    def fingerprint(self, text: bytes) -> str:
        """The same for equal texts, and useless for guessing them without the key. Raises `SecretsKeyError`."""
        return hmac.new(self._first()[1], text, hashlib.sha256).hexdigest()

    def _first(self) -> tuple[bytes, bytes]:
        for named in self._keys.items():
            return named
        raise SecretsKeyError("this service has no key for secrets")


def check_keys(keys: str) -> str:
    """`keys` itself, for settings. Raises `ValueError`."""
    try:
        Sealer(keys)
    except InvalidError as error:
        raise ValueError(error.message) from None
    return keys


def _decoded(text: str) -> bytes:
    try:
        key = base64.b64decode(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise InvalidError(
            "a key for secrets must be the base64 of 32 bytes",
            fix="Make one with `openssl rand -base64 32`; several are separated by commas.",
        )
    return key


def _name(key: bytes) -> bytes:
    return hashlib.sha256(b"squall sealing key" + key).digest()[:NAME_BYTES]
