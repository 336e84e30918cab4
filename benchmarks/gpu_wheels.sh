#!/usr/bin/env bash
# gpu_wheels.sh FOLDER [PYTHON_VERSION] [PACKAGE]...: the wheels that gpu.py needs beside torch, for a machine without
# network. The machine is expected to have torch and what an older transformers brings (numpy, tqdm, regex, PyYAML,
# requests); what else it lacks is named by the first lines of gpu.py (cell limits, "missing") and can be added here as
# PACKAGE: "pyarrow pandas", or "matplotlib contourpy cycler fonttools kiwisolver pillow pyparsing". bitsandbytes is cut
# down to the library of CUDA 13 (4 MB, not 43), pyarrow by what nothing here imports (36 MB, not 55).
set -euo pipefail
folder=${1:?a folder for the wheels}
version=${2:-3.12}
shift $(($# < 2 ? $# : 2))
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$folder"
packages=(transformers peft accelerate tokenizers huggingface_hub safetensors bitsandbytes sentencepiece filelock
  httpx2 httpcore2 truststore h11 anyio idna click typer rich pygments markdown_it_py mdurl psutil jinja2 markupsafe
  protobuf
  trl==1.16.0 datasets dill multiprocess xxhash) # the last line: TRL, for the cell of peers
python -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --platform manylinux2014_x86_64 \
  --platform manylinux_2_17_x86_64 --platform manylinux_2_24_x86_64 --platform manylinux_2_28_x86_64 --implementation cp \
  -c "$here/../constraints.txt" -d "$folder" "${packages[@]}" "$@"
python - "$folder" <<'P'
import glob, os, sys, zipfile

def is_needed(name):
    if name.startswith("bitsandbytes/"):
        return not name.endswith(".so") or name.endswith(("_cuda130.so", "_cpu.so"))
    unused = ("flight", "libarrow_s3", "_s3fs", "/include/", "/tests/")
    return not name.startswith("pyarrow/") or not any(part in name for part in unused)

for path in [path for kind in ("bitsandbytes", "pyarrow") for path in glob.glob(os.path.join(sys.argv[1], kind + "-*.whl"))]:
    temporary = path + ".tmp"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as target:
        for item in source.infolist():
            if is_needed(item.filename):
                target.writestr(item, source.read(item))
    os.replace(temporary, path)
P
du -sh "$folder"
