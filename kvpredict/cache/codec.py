"""Codec: values as bytes, for tiers outside the process, journals and snapshots; safe to decode, wherever from.

Numbers, text, bytes, bytearrays, lists, tuples, dicts, sets, dates, decimals and NumPy arrays come back equal and of
the same type (a time zone as its offset); anything else is an error, never a guess. Bytes from outside are checked
before they are used, and decoding runs no code from them. Pickle does, so it has to be asked for by name and takes only
what was signed with its secret.

A header of six bytes says how the rest was made and carries its checksum. Large values are compressed by zstd, small
ones better with a dictionary trained on values like them.
"""

import base64
import datetime
import decimal
import hashlib
import hmac
import json
import pickle
import threading
import zlib
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np

from kvpredict.cache.errors import CodecError
from kvpredict.core.arguments import whole_number
from kvpredict.core.errors import KvpredictError, MissingExtra

__all__ = ["Codec", "train_dictionary"]

MAGIC = 0x6B
FORMATS = {"msgpack": 0, "json": 1, "pickle": 2}
PACKED, WITH_DICTIONARY = 4, 8  # flags beside the format
SIGNATURE = 32
_DICTIONARY = b"\x37\xa4\x30\xec"  # how one of zstd begins

_REFUSED = 'a value of type {} cannot be encoded; use plain types, or Codec("pickle", secret=…)'

TUPLE, ARRAY, SCALAR, SET, FROZEN, DECIMAL, DATETIME, DATE, INTEGER, BYTEARRAY = range(1, 11)
_LOOKED_INTO = {list, dict, bytearray, memoryview}  # what msgpack packs itself and may be, or hold, other than bytes


class Codec:
    """Encodes and decodes values.

    Parameters
    ----------
    format : "msgpack", "json" or "pickle", default "msgpack"
        "msgpack" needs the ``cache`` extra. "pickle" takes any object, and needs a ``secret``.
    compress : int or None, default 3
        The level of zstd (the ``cache`` extra) for values of 256 bytes or more; None compresses nothing.
    dictionary : bytes, optional
        A dictionary from ``train_dictionary``; then smaller values are compressed too. Who decodes needs the same one.
    secret : bytes, optional
        With it everything is signed by HMAC-SHA256, and nothing else is decoded. At least 16 bytes.

    >>> codec = Codec("json", compress=None)
    >>> codec.decode(codec.encode({"a": (1, b"x")}))
    {'a': (1, b'x')}
    """

    def __init__(
        self,
        format: Literal["msgpack", "json", "pickle"] = "msgpack",
        *,
        compress: int | None = 3,
        dictionary: bytes | None = None,
        secret: bytes | None = None,
    ) -> None:
        if format not in FORMATS:
            raise KvpredictError(f"format is one of {', '.join(FORMATS)}, got {format!r}")
        if secret is not None and (not isinstance(secret, bytes) or len(secret) < 16):
            got = f"{len(secret)} of them" if isinstance(secret, bytes) else type(secret).__name__
            raise KvpredictError(f"secret must be bytes, at least 16 bytes of them, got {got}")
        if format == "pickle" and secret is None:
            raise KvpredictError("pickle runs code from what it reads: give a secret that signs it, or use msgpack")
        self.format = format
        self._secret = secret
        self._level, self._dictionary = compress, dictionary
        self._least = 256 if dictionary is None else 32
        self._local = threading.local()  # zstd's objects are of one thread each
        if format == "msgpack":
            _msgpack()
        if compress is not None:
            zstd = _zstandard()
            self._level = whole_number("compress", compress, least=None, most=zstd.MAX_COMPRESSION_LEVEL)
            if dictionary is not None and not (isinstance(dictionary, bytes) and dictionary.startswith(_DICTIONARY)):
                raise KvpredictError("dictionary must be bytes that train_dictionary returned")
            try:
                self._zstd()
            except (ValueError, OverflowError, zstd.ZstdError) as error:
                given = f"compress={compress!r}" if dictionary is None else f"compress={compress!r} and this dictionary"
                raise KvpredictError(f"zstd does not take {given}: {error}") from None
        elif dictionary is not None:
            raise KvpredictError("a dictionary is for compression: give a level, such as compress=3")

    def encode(self, value: Any) -> bytes:
        """Return ``value`` as bytes; CodecError for a type that does not come back as it was."""
        kind = FORMATS[self.format]
        try:
            if self.format == "msgpack":
                data = _pack(value)
            elif self.format == "json":
                data = json.dumps(_to_json(value), separators=(",", ":")).encode("utf-8", "surrogatepass")
            else:
                data = pickle.dumps(value, protocol=5)
        except CodecError:
            raise
        except Exception as error:
            raise CodecError(f"a value of type {type(value).__name__} cannot be encoded: {error}") from None
        if self._level is not None and len(data) >= self._least:
            packed = self._zstd()[0].compress(data)
            if len(packed) < len(data):
                data, kind = packed, kind | PACKED | (WITH_DICTIONARY if self._dictionary else 0)
        if self._secret is not None:
            data += hmac.digest(self._secret, bytes((kind,)) + data, hashlib.sha256)
        return bytes((MAGIC, kind)) + zlib.crc32(data).to_bytes(4, "little") + data

    def decode(self, data: bytes) -> Any:
        """Return the value; CodecError where the bytes are not what ``encode`` of an equal codec returned."""
        if len(data) < 6 or data[0] != MAGIC:
            raise CodecError("these bytes were not made by a kvpredict codec")
        kind, body = data[1], data[6:]
        if zlib.crc32(body) != int.from_bytes(data[2:6], "little"):
            raise CodecError("the bytes are damaged: their checksum differs")
        if kind & 3 != FORMATS[self.format]:
            raise CodecError(f"the bytes are of another format than {self.format}")
        if self._secret is not None:
            body, signature = body[:-SIGNATURE], body[-SIGNATURE:]
            if not hmac.compare_digest(signature, hmac.digest(self._secret, bytes((kind,)) + body, hashlib.sha256)):
                raise CodecError("the bytes are not signed with this codec's secret")
        if kind & WITH_DICTIONARY and self._dictionary is None:
            raise CodecError("the bytes were compressed with a dictionary that this codec was not given")
        try:
            if kind & PACKED:
                body = self._zstd()[1].decompress(body)
            if self.format == "msgpack":
                return _unpack(body)
            if self.format == "json":
                return _from_json(json.loads(body.decode("utf-8", "surrogatepass")))
            return pickle.loads(body)  # signed, see above
        except Exception as error:
            raise CodecError(f"the bytes cannot be decoded: {error}") from None

    def encode_key(self, key: Hashable) -> bytes:
        """Return ``key`` as bytes, the same in every process and for every codec."""
        return json.dumps(_to_json(key), separators=(",", ":")).encode("utf-8", "surrogatepass")

    def decode_key(self, data: bytes) -> Any:
        """Return the key."""
        try:
            return _from_json(json.loads(data.decode("utf-8", "surrogatepass")))
        except Exception as error:
            raise CodecError(f"the bytes of a key cannot be decoded: {error}") from None

    def _zstd(self) -> tuple[Any, Any]:
        made: tuple[Any, Any] | None = getattr(self._local, "zstd", None)
        if made is None:
            zstd = _zstandard()
            options = {} if self._dictionary is None else {"dict_data": zstd.ZstdCompressionDict(self._dictionary)}
            made = zstd.ZstdCompressor(level=self._level, **options), zstd.ZstdDecompressor(**options)
            self._local.zstd = made
        return made


def train_dictionary(samples: Sequence[bytes], size: int = 16_384) -> bytes:
    """Return a zstd dictionary for values like ``samples``, which are encoded without compression.

    A few hundred samples of a kind are enough; ``size`` is in bytes.
    """
    zstd = _zstandard()
    try:
        return bytes(zstd.train_dictionary(size, list(samples)).as_bytes())
    except zstd.ZstdError as error:
        raise CodecError(f"no dictionary from {len(samples)} samples ({error}); give more of them") from None


def _msgpack() -> Any:
    try:
        import msgpack
    except ImportError:
        raise MissingExtra('this codec needs msgpack: pip install "kvpredict[cache]", or Codec("json")') from None
    return msgpack


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise MissingExtra('compression needs zstandard: pip install "kvpredict[cache]", or compress=None') from None
    return zstandard


def _special(value: Any) -> tuple[int, Any] | None:
    """Return number and plain form of a value that neither msgpack nor JSON knows."""
    kind = type(value)
    if kind is tuple:
        return TUPLE, list(value)
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.hasobject or value.dtype.kind == "V":
            raise CodecError(f"an array of dtype {value.dtype} cannot be encoded; numbers, text and dates can")
        raw = np.ascontiguousarray(value).tobytes()
        return SCALAR if isinstance(value, np.generic) else ARRAY, [value.dtype.str, list(value.shape), raw]
    if kind is set or kind is frozenset:
        return SET if kind is set else FROZEN, list(value)
    if kind is decimal.Decimal:
        return DECIMAL, str(value)
    if kind is datetime.datetime:
        return DATETIME, [value.isoformat(), 1] if value.fold else value.isoformat()
    if kind is datetime.date:
        return DATE, value.isoformat()
    if kind is int:
        return INTEGER, str(value)
    if kind is bytearray:
        return BYTEARRAY, bytes(value)
    return None


def _revived(code: int, plain: Any) -> Any:
    if code == TUPLE:
        return tuple(plain)
    if code in (ARRAY, SCALAR):
        dtype = np.dtype(plain[0])
        if dtype.hasobject:
            raise CodecError("an array of objects is not decoded")
        array = np.frombuffer(plain[2], dtype).reshape(plain[1])
        return array[()] if code == SCALAR else array.copy()
    if code in (SET, FROZEN):
        return (set if code == SET else frozenset)(plain)
    if code == DECIMAL:
        return decimal.Decimal(plain)
    if code == DATETIME:
        text, fold = plain if isinstance(plain, list) else (plain, 0)
        return datetime.datetime.fromisoformat(text).replace(fold=fold)
    if code == DATE:
        return datetime.date.fromisoformat(plain)
    if code == INTEGER:
        return int(plain)
    if code == BYTEARRAY:
        return bytearray(plain)
    raise CodecError(f"unknown kind {code}; the bytes may be of a newer version")


def _pack(value: Any) -> bytes:
    msgpack = _msgpack()

    def extended(value: Any) -> Any:
        special = _special(value)
        if special is None:
            raise CodecError(_REFUSED.format(type(value).__name__))
        return msgpack.ExtType(special[0], _pack(special[1]))

    def exact(value: Any) -> Any:
        """Return ``value`` with bytearrays told from bytes, which msgpack takes for the same even if strict."""
        kind = type(value)
        if kind is list and not _LOOKED_INTO.isdisjoint(map(type, value)):
            return [exact(item) for item in value]
        if kind is dict and not (
            _LOOKED_INTO.isdisjoint(map(type, value.values())) and _LOOKED_INTO.isdisjoint(map(type, value))
        ):
            return {exact(key): exact(item) for key, item in value.items()}
        return extended(value) if kind is bytearray or kind is memoryview else value

    packed: bytes = msgpack.packb(exact(value), default=extended, strict_types=True, unicode_errors="surrogatepass")
    return packed


def _unpack(data: bytes) -> Any:
    return _msgpack().unpackb(
        data,
        ext_hook=lambda code, body: _revived(code, _unpack(body)),
        strict_map_key=False,
        unicode_errors="surrogatepass",
    )


def _to_json(value: Any) -> Any:
    """Return ``value`` in JSON's types; what JSON does not know becomes ``{"$": number, "v": plain}``."""
    kind = type(value)
    if value is None or kind in (bool, str, int, float):
        return value
    if kind is list:
        return [_to_json(item) for item in value]
    if kind is dict:
        if all(type(key) is str for key in value) and "$" not in value:
            return {key: _to_json(item) for key, item in value.items()}
        return {"$": 0, "v": [[_to_json(key), _to_json(item)] for key, item in value.items()]}
    if kind is bytes:
        return {"$": -1, "v": base64.b64encode(value).decode("ascii")}
    special = _special(value)
    if special is None:
        raise CodecError(_REFUSED.format(kind.__name__))
    return {"$": special[0], "v": _to_json(special[1])}


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$" not in value:
        return {key: _from_json(item) for key, item in value.items()}
    code, plain = value["$"], value["v"]
    if code == 0:
        return {_from_json(key): _from_json(item) for key, item in plain}
    if code == -1:
        return base64.b64decode(plain, validate=True)
    return _revived(code, _from_json(plain))
