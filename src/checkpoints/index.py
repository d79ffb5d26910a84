"""The index of a checkpoint (a TensorFlow bundle): read and checked here, since TensorFlow's reader aborts on a forged one."""

import math
from pathlib import Path

from tensorflow.core.protobuf.tensor_bundle_pb2 import BundleEntryProto, BundleHeaderProto

from src.backend import tf

FOOTER, MAGIC = 48, (0xDB4775248B80FB57).to_bytes(8, "little")  # an index is a LevelDB table, without compression


def shapes(prefix):
    """Returns a dict of tensor name -> list of int, of PREFIX.index, once every tensor is known to lie in the data files.

    Raises nearly anything if not. Checksums are left to TensorFlow.
    """
    index = Path(f"{prefix}.index").read_bytes()
    if len(index) < FOOTER or index[-8:] != MAGIC or len(index) > 2**26:
        raise ValueError("its index is cut off, or none")
    _, at = _number(index, len(index) - FOOTER)
    _, at = _number(index, at)
    entries, end = {}, 0
    for _, handle in _entries(index, *_place(index, at)):
        start, size = _place(handle, 0)
        if start < end:
            raise ValueError("its index is tangled")
        entries |= _entries(index, start, size)
        end = start + size
    shards = BundleHeaderProto.FromString(entries.pop(b"")).num_shards
    held = [Path(f"{prefix}.data-{i:05d}-of-{shards:05d}").stat().st_size for i in range(shards)]
    return {name.decode(): _shape(name.decode(), BundleEntryProto.FromString(value), held) for name, value in entries.items()}


def _shape(name, entry, held):
    kind, shape = tf.as_dtype(entry.dtype), [dim.size for dim in entry.shape.dim]
    if entry.slices or len(shape) > 8 or min(shape, default=0) < 0 or entry.shape.unknown_rank:
        raise ValueError(f"{name} has the shape {shape[:8]}")
    if entry.offset < 0 or entry.size < 0 or entry.offset + entry.size > held[entry.shard_id]:
        raise ValueError(f"{name} lies outside of its data file")
    if kind == tf.string:
        fits = 0 <= math.prod(shape) <= entry.size
    else:
        fits = (kind.is_floating or kind.is_integer or kind.is_bool) and math.prod(shape) * kind.size == entry.size
    if not fits:
        raise ValueError(f"{name} announces {math.prod(shape):,} values of {kind.name} in {entry.size:,} bytes")
    return shape


def _entries(data, start, size):
    """The block at this place of a table: a list of (key, value), bytes."""
    block = data[start : start + size]
    end = size - 4 - 4 * int.from_bytes(block[-4:], "little")  # before the restart points
    if len(block) < size or data[start + size] or end < 0:
        raise ValueError("its index has a bad block")
    found, key, at = [], b"", 0
    while at < end:
        shared, at = _number(block, at)
        fresh, at = _number(block, at)
        length, at = _number(block, at)
        key, value = key[:shared] + block[at : at + fresh], block[at + fresh : at + fresh + length]
        at += fresh + length
        if at > end or len(key) < shared + fresh:
            raise ValueError("its index has a bad block")
        found.append((key, value))
    return found


def _place(data, at):
    start, at = _number(data, at)
    return start, _number(data, at)[0]


def _number(data, at):
    """A varint -> (its value, where it ends)."""
    value = 0
    for shift in range(0, 64, 7):
        value |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            return value, at
    raise ValueError("its index has a bad number")
