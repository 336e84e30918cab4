#!/usr/bin/env bash
# Environments for the trainers that benchmarks/training.py runs next to glmtune.
#
#   benchmarks/peers/make_envs.sh DIR [trl|llamafactory]...     (both when none is named)
#
# Each peer gets DIR/NAME, a virtual environment of its own: their requirements exclude each other's and ours. torch
# goes in first and is held by a constraint, so that a peer's requirements neither replace a CPU build nor change what
# computes. PYTHON names the interpreter, TORCH the version. A peer that pip cannot install leaves its reason in
# DIR/NAME.failed, which the benchmark shows in place of its figures; the others are still made.
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
  local name=$1 wanted env=$folder/$1 log=$folder/$1.log
  wanted=$(requirement "$name") || { echo "$name: unknown; known are trl and llamafactory" >&2; return 2; }
  [ -e "$env/.complete" ] && { echo "$name: there already"; return; }
  rm -rf "$env" "$folder/$name.failed"
  echo "torch==$torch" > "$folder/constraint.txt"
  if "$python" -m venv "$env" > "$log" 2>&1 \
    && "$env/bin/pip" install "torch==$torch" >> "$log" 2>&1 \
    && stand_in "$name" "$env" >> "$log" 2>&1 \
    && "$env/bin/pip" install $wanted -c "$folder/constraint.txt" >> "$log" 2>&1 \
    && drop_broken_torchvision "$env" >> "$log" 2>&1; then
    touch "$env/.complete"
    echo "$name: $env"
  else
    # pip's own words; the last line if it said nothing that begins with ERROR.
    { grep -m 3 '^ERROR' "$log" || tail -n 1 "$log"; } > "$folder/$name.failed"
    echo "$name: failed, see $log" >&2
    return 1
  fi
}

stand_in() {  # name env: LLaMA-Factory asks for torchaudio, which text does not need and which brings CUDA libraries
  [ "$1" = llamafactory ] || return 0
  rm -rf "$folder/torchaudio_stand_in"  # a copy: building leaves files beside the sources
  cp -r "$here/torchaudio_stand_in" "$folder" && "$2/bin/pip" install "$folder/torchaudio_stand_in"
}

drop_broken_torchvision() {  # env: a CUDA build beside a CPU torch cannot be imported, and transformers then cannot either
  "$1/bin/python" -c 'import importlib.util as u; u.find_spec("torchvision") and __import__("torchvision")' \
    || "$1/bin/pip" uninstall -y torchvision
}

[ $# -ge 1 ] || set -- trl llamafactory
status=0
for name in "$@"; do make_env "$name" || status=1; done
exit $status
