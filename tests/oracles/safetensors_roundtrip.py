#!/usr/bin/env python3
"""Exchanges files with the safetensors package, in both directions and bit for bit.

    python3 safetensors_roundtrip.py <the program safetensors_roundtrip>
"""
import pathlib
import subprocess
import sys
import tempfile

try:
    import numpy
    import safetensors
    from safetensors.numpy import load_file, save_file
except ImportError as problem:
    print(f"skipped: {problem}")
    sys.exit(0)
if tuple(map(int, safetensors.__version__.split(".")[:2])) < (0, 6):
    print(f"skipped: safetensors {safetensors.__version__} does not know all types, 0.6 does")
    sys.exit(0)

# Name in the format, bytes of an element, NumPy's type (or none), the name that serialize_file takes.
TYPES = [
    ("F64", 8, "float64", "float64"), ("F32", 4, "float32", "float32"), ("F16", 2, "float16", "float16"),
    ("BF16", 2, None, "bfloat16"), ("F8_E4M3", 1, None, "float8_e4m3fn"), ("F8_E5M2", 1, None, "float8_e5m2"),
    ("F8_E8M0", 1, None, "float8_e8m0fnu"), ("I64", 8, "int64", "int64"), ("I32", 4, "int32", "int32"),
    ("I16", 2, "int16", "int16"), ("I8", 1, "int8", "int8"), ("U64", 8, "uint64", "uint64"),
    ("U32", 4, "uint32", "uint32"), ("U16", 2, "uint16", "uint16"), ("U8", 1, "uint8", "uint8"),
    ("BOOL", 1, "bool", "bool"),
]
SHAPES = [[], [1], [7], [3, 5], [2, 3, 4], [0], [0, 4], [4, 0]]


def expected(name, n):
    """The bytes of a tensor, as the program makes them."""
    state = 0xCBF29CE484222325
    for c in name.encode():
        state = (state ^ c) * 0x100000001B3 % 2**64
    data = bytearray()
    for _ in range(n):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        data.append(state >> 56)
    return bytes(data)


def all_tensors():
    for kind, size, in_numpy, in_package in TYPES:
        for shape in SHAPES:
            name = ".".join([kind, *map(str, shape)])
            yield name, kind, in_numpy, in_package, shape, expected(name, size * int(numpy.prod(shape, dtype=int)))


def from_sluice(program, folder):
    path = folder / "from_sluice"
    subprocess.run([program, "write", path], check=True)
    raw = dict(safetensors.deserialize(path.read_bytes()))
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "sluice"}, file.metadata()
        count = 0
        for name, kind, in_numpy, _, shape, data in all_tensors():
            got = raw.pop(name)
            assert (got["dtype"], got["shape"], bytes(got["data"])) == (kind, shape, data), name
            if in_numpy:
                array = file.get_tensor(name)
                assert (array.dtype, list(array.shape)) == (numpy.dtype(in_numpy), shape), name
                assert array.tobytes() == data, name
            count += 1
        assert not raw, raw.keys()
    return count


def to_sluice(program, folder):
    path = folder / "to_sluice"
    tensors, kept = {}, []
    for name, _, _, in_package, shape, data in all_tensors():
        if hasattr(safetensors, "TensorSpec"):  # from 0.8 on, an address that somebody else keeps alive
            kept.append(numpy.frombuffer(data, dtype=numpy.uint8))
            tensors[name] = safetensors.TensorSpec(dtype=in_package, shape=shape, data_ptr=kept[-1].ctypes.data,
                                                   data_len=len(data))
        else:
            tensors[name] = {"dtype": in_package, "shape": shape, "data": data}
    safetensors.serialize_file(tensors, path, {"format": "np"})
    subprocess.run([program, "check", path], check=True)
    return len(tensors)


def there_and_back(program, folder):
    """Names and metadata that need care, and values made by NumPy."""
    tensors = {
        "special": numpy.array([numpy.nan, numpy.inf, -numpy.inf, -0.0, 1e-45], dtype=numpy.float32),
        "größe \"quoted\" \\ /": numpy.arange(6, dtype=numpy.float32).reshape(2, 3),
        "transposed": numpy.arange(12, dtype=numpy.float64).reshape(3, 4).T.copy(),
        "8 dimensions": numpy.arange(6, dtype=numpy.int16).reshape(1, 1, 1, 1, 2, 1, 1, 3),
    }
    metadata = {"format": "np", "ключ": "line\nbreak \"quoted\"", "empty": ""}
    save_file(tensors, folder / "in", metadata)
    subprocess.run([program, "copy", folder / "in", folder / "out"], check=True)
    result = load_file(folder / "out")
    assert result.keys() == tensors.keys()
    for name, array in tensors.items():
        got = result[name]
        assert got.dtype == array.dtype and got.shape == array.shape, name
        assert got.tobytes() == array.tobytes(), name
    with safetensors.safe_open(folder / "out", "np") as file:
        assert file.metadata() == metadata, file.metadata()
    return len(tensors)


def main():
    program = pathlib.Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        counts = [f(program, folder) for f in (from_sluice, to_sluice, there_and_back)]
    print(f"{counts[0]} tensors read by safetensors {safetensors.__version__}, {counts[1]} written by it, "
          f"{counts[2]} there and back")


if __name__ == "__main__":
    sys.exit(main())
