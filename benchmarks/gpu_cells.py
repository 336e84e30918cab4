"""One cell of `gpu.py`, in a process of its own: results are lines of JSON on standard output.

A result is a proof (numbers that must be right) or a figure (speed, memory, counts). Memory figures are MiB.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import gpu_figures
import gpu_peers
import gpu_proofs
import gpu_software
from gpu_results import Setup
from models import SHAPES

CELLS: dict[str, Callable[..., None]] = {
    function.__name__: function
    for function in (
        gpu_figures.limits,
        gpu_proofs.golden_parity,
        gpu_proofs.packed_parity,
        gpu_proofs.bitsandbytes_parity,
        gpu_proofs.row_parity,
        gpu_proofs.training_parity,
        gpu_proofs.checkpointing_parity,
        gpu_proofs.resume_parity,
        gpu_figures.memory,
        gpu_figures.profile,
        gpu_figures.decoding,
        gpu_figures.decoding_transformers,
        gpu_figures.loading,
        gpu_figures.bare_loop,
        gpu_peers.trl,
        gpu_software.software,
        gpu_figures.attention,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cell", choices=CELLS)
    parser.add_argument("arguments", nargs="*")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=("published", *SHAPES), default="published")
    args = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    CELLS[args.cell](Setup(args.device, args.shape), *args.arguments)


if __name__ == "__main__":
    main()
