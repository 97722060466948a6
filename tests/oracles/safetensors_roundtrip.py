#!/usr/bin/env python3
"""Exchanges files with the safetensors package: Python writes, sluice reads and writes again, Python compares.

Needs the packages safetensors and numpy and a C++20 compiler (CXX, default c++). Run it by hand:
    python3 tests/oracles/safetensors_roundtrip.py
"""
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

import numpy
import safetensors
from safetensors.numpy import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]

PROGRAM = r"""
#include <sluice/io/safetensors_writer.hpp>

#include <cstdio>
#include <list>

namespace io = sluice::io;

template <class T> void add(io::safetensors_writer& out, const io::safetensors& in, const std::string& name) {
    static std::list<std::vector<T>> kept;  // save reads what was added
    auto& memory = kept.emplace_back(in.info(name).bytes.size() / sizeof(T));
    const sluice::tensor_view<T> t(memory.data(), in.info(name).rows(), in.info(name).cols());
    in.copy_to(name, t);
    const auto v = in.view<T>(name);
    for (sluice::idx i = 0; i < t.rows(); ++i)
        for (sluice::idx j = 0; j < t.cols(); ++j)
            if (!(t(i, j) == v(i, j)) && t(i, j) == t(i, j)) std::puts("copy and view differ");
    out.add_bytes(name, io::dtype_of<T>, in.info(name).shape, std::as_bytes(std::span(memory)));
}

int main(int, char** arguments) {
    const io::safetensors in = io::read(arguments[1]);
    io::safetensors_writer out;
    for (const auto& [name, t] : in.tensors()) {
        std::printf("%s: %s\n", name.c_str(), t.text().c_str());
        if (t.type == io::dtype::f32) add<float>(out, in, name);
        else if (t.type == io::dtype::f64) add<double>(out, in, name);
        else if (t.type == io::dtype::i64) add<std::int64_t>(out, in, name);
        else out.add_bytes(name, t.type, t.shape, t.bytes);
    }
    for (const auto& [key, value] : in.metadata()) out.metadata(key, value);
    out.save(arguments[2]);
}
"""


def build(folder):
    source, program = folder / "exchange.cpp", folder / "exchange"
    source.write_text(PROGRAM)
    subprocess.run([os.environ.get("CXX", "c++"), "-std=c++20", "-O1", f"-I{ROOT}/include", source, "-o", program],
                   check=True)
    return program


def through_numpy(program, folder):
    random = numpy.random.default_rng(1)
    tensors = {}
    for kind in ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16",
                 "uint8", "bool"]:
        for shape in [(), (1,), (7,), (3, 5), (2, 3, 4), (0,), (0, 4), (4, 0), (1, 1, 1, 1, 2, 1, 1, 3)]:
            name = f"{kind}.{'x'.join(map(str, shape)) or 'scalar'}"
            tensors[name] = numpy.asarray(random.integers(0, 2**15, shape)).astype(kind)
    tensors["special"] = numpy.array([numpy.nan, numpy.inf, -numpy.inf, -0.0, 1e-45], dtype=numpy.float32)
    tensors["größe \"quoted\" \\ /"] = numpy.arange(6, dtype=numpy.float32).reshape(2, 3)
    metadata = {"format": "np", "ключ": "line\nbreak \"quoted\"", "empty": ""}
    save_file(tensors, folder / "in", metadata)
    lines = subprocess.run([program, folder / "in", folder / "out"], check=True, capture_output=True,
                           text=True).stdout.splitlines()
    assert len(lines) == len(tensors), lines
    result = load_file(folder / "out")
    assert result.keys() == tensors.keys()
    for name, expected in tensors.items():
        got = result[name]
        assert got.dtype == expected.dtype and got.shape == expected.shape, name
        assert got.tobytes() == expected.tobytes(), name
    with safetensors.safe_open(folder / "out", "np") as file:
        assert file.metadata() == metadata, file.metadata()
    return len(tensors)


def through_bytes(program, folder):
    """Types that NumPy lacks: a file made by hand."""
    header, data = {}, b""
    for kind, size in {"BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}.items():
        values = bytes(range(15 * size))
        header[kind] = {"dtype": kind, "shape": [3, 5], "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    (folder / "in").write_bytes(struct.pack("<Q", len(text)) + text + data)
    subprocess.run([program, folder / "in", folder / "out"], check=True, capture_output=True)
    result = dict(safetensors.deserialize((folder / "out").read_bytes()))
    original = dict(safetensors.deserialize((folder / "in").read_bytes()))
    assert result.keys() == original.keys() == header.keys()
    for name, expected in original.items():
        got = result[name]
        assert (got["dtype"], got["shape"], bytes(got["data"])) == \
               (expected["dtype"], expected["shape"], bytes(expected["data"])), name
    return len(header)


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        program = build(folder)
        count = through_numpy(program, folder) + through_bytes(program, folder)
    print(f"{count} tensors exchanged with safetensors {safetensors.__version__}")


if __name__ == "__main__":
    sys.exit(main())
