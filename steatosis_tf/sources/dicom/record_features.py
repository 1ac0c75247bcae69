"""The contents of TFRecord files as named pieces of bytes, for searching."""

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

_GZIP_MARK = b"\x1f\x8b"
_MAX_RECORD_BYTES = 1 << 30


def record_texts(path: Path) -> Iterator[tuple[str, bytes | float]]:
    """Every feature value of every `tf.train.Example` in a TFRecord file.

    A record that is no Example is given as a whole, a damaged file as its raw bytes: what cannot
    be parsed is still searched.

    Args:
        path: TFRecord file, plain or gzip.

    Yields:
        `("record 0, feature patient_id", value)`; bytes, integers or floats.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.example import example_pb2  # slow to import, needed here only

    number = -1
    try:
        for number, record in enumerate(_records(path)):
            example = example_pb2.Example()
            try:
                example.ParseFromString(record)
            except DecodeError:
                yield f"record {number}", record
                continue
            if not example.features.feature:
                yield f"record {number}", record
            for feature_number, (name, feature) in enumerate(
                sorted(example.features.feature.items())
            ):
                place = f"record {number}, feature {feature_number + 1}"
                yield f"{place} name", name.encode()
                for value in feature.bytes_list.value:
                    yield place, value
                for figure in (*feature.int64_list.value, *feature.float_list.value):
                    yield place, figure
    except (OSError, EOFError, ValueError):
        yield f"after record {number}", path.read_bytes()


def _records(path: Path) -> Iterator[bytes]:
    """Payloads by the TFRecord framing: length, its checksum, payload, its checksum."""
    with path.open("rb") as stream:
        is_packed = stream.read(2) == _GZIP_MARK
    with cast(BinaryIO, gzip.open(path)) if is_packed else path.open("rb") as stream:
        while head := stream.read(12):
            if len(head) < 12:
                raise ValueError("truncated record head")
            (length,) = struct.unpack("<Q", head[:8])
            if length > _MAX_RECORD_BYTES:
                raise ValueError("impossible record length")
            payload = stream.read(length)
            if len(payload) < length or len(stream.read(4)) < 4:
                raise ValueError("truncated record")
            yield payload
