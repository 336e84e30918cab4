#!/usr/bin/env bash
# gpu_wheels.sh FOLDER [PYTHON_VERSION]: the wheels that gpu.py needs beside torch, for a machine without network.
# bitsandbytes is cut down to the library of CUDA 13: 4 MB instead of 43.
set -euo pipefail
folder=${1:?a folder for the wheels}
version=${2:-3.12}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$folder"
packages=(transformers peft accelerate tokenizers huggingface_hub safetensors bitsandbytes datasets dill multiprocess sentencepiece filelock)
python -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --platform manylinux2014_x86_64 \
  --platform manylinux_2_17_x86_64 --platform manylinux_2_24_x86_64 --platform manylinux_2_28_x86_64 --implementation cp \
  -c "$here/../constraints.txt" -d "$folder" "${packages[@]}"
python - "$folder" <<'P'
import glob, os, sys, zipfile

for path in glob.glob(os.path.join(sys.argv[1], "bitsandbytes-*.whl")):
    temporary = path + ".tmp"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as target:
        for item in source.infolist():
            if not item.filename.endswith(".so") or item.filename.endswith(("_cuda130.so", "_cpu.so")):
                target.writestr(item, source.read(item))
    os.replace(temporary, path)
P
du -sh "$folder"
