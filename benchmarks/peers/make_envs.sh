#!/usr/bin/env bash
# Environments for the trainers that benchmarks/training.py compares with glmtune.
#
#   benchmarks/peers/make_envs.sh DIR [trl|llamafactory]...     (default: both)
#
# Each trainer gets DIR/NAME, a virtual environment of its own: their requirements conflict with each other's and ours.
# torch is installed first and pinned by a constraint, so that other requirements neither replace a CPU build nor change
# the version. PYTHON sets the interpreter, TORCH the version. If pip cannot install a trainer, its reason is written to
# DIR/NAME.failed, which the benchmark prints instead of figures; the others are still installed.
set -u
[ $# -ge 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
folder=$(realpath -m "$1"); shift
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
torch=${TORCH:-2.13.0}
mkdir -p "$folder"

requirement() {
  case $1 in
    trl) echo "trl==1.16.0 peft==0.21.0" ;;
    llamafactory) echo "llamafactory==0.9.5" ;;
    *) return 1 ;;
  esac
}

make_env() {  # name
  local name=$1 packages env=$folder/$1 log=$folder/$1.log
  packages=$(requirement "$name") || { echo "$name: unknown; known are trl and llamafactory" >&2; return 2; }
  [ -e "$env/.complete" ] && { echo "$name: installed already"; return; }
  rm -rf "$env" "$folder/$name.failed"
  echo "torch==$torch" > "$folder/constraint.txt"
  if "$python" -m venv "$env" > "$log" 2>&1 \
    && "$env/bin/pip" install "torch==$torch" >> "$log" 2>&1 \
    && install_stub "$name" "$env" >> "$log" 2>&1 \
    && "$env/bin/pip" install $packages -c "$folder/constraint.txt" >> "$log" 2>&1 \
    && drop_broken_torchvision "$env" >> "$log" 2>&1; then
    touch "$env/.complete"
    echo "$name: $env"
  else
    # pip's error lines; the last line if there are none.
    { grep -m 3 '^ERROR' "$log" || tail -n 1 "$log"; } > "$folder/$name.failed"
    echo "$name: failed, see $log" >&2
    return 1
  fi
}

install_stub() {  # name env: LLaMA-Factory requires torchaudio, which text does not need and which installs CUDA libraries
  [ "$1" = llamafactory ] || return 0
  rm -rf "$folder/torchaudio_stub"  # a copy: building writes files next to the sources
  cp -r "$here/torchaudio_stub" "$folder" && "$2/bin/pip" install "$folder/torchaudio_stub"
}

drop_broken_torchvision() {  # env: with a CPU torch a CUDA build cannot be imported, and then transformers cannot either
  "$1/bin/python" -c 'import importlib.util as u; u.find_spec("torchvision") and __import__("torchvision")' \
    || "$1/bin/pip" uninstall -y torchvision
}

[ $# -ge 1 ] || set -- trl llamafactory
status=0
for name in "$@"; do make_env "$name" || status=1; done
exit $status
