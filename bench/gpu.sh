#!/usr/bin/env bash
# All that needs a GPU, in order of worth: build, parity, timings, sanitizer, profile.
#
#   bench/gpu.sh          on a machine with a GPU
#   bench/gpu.sh --dry    anywhere: the same steps with interpreter or compiler in place of the GPU, at tiny sizes
#
# No step is needed by the next one to start, each is bounded, and all together end within nine minutes. What ran, what
# failed and what was left out is printed last; the exit status is 1 where a step failed. Results go to the folder $OUT
# (default runs/gpu): a log, the timings as JSON under the name that bench/results has them by, and the profile in one
# archive.
set -uo pipefail
cd "$(dirname "$0")/.."

case "${1:-}" in
  "") mode=gpu device=cuda ;;
  --dry) mode=dry device=cpu ;;
  *)
    echo "usage: bench/gpu.sh [--dry]" >&2
    exit 2
    ;;
esac

python=${PYTHON:-python3}
out=${OUT:-runs/gpu}
budget=${GPU_SECONDS:-530} # seconds for everything
mkdir -p "$out"
out=$(cd "$out" && pwd)
log=$out/gpu.log
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
: >"$log"
names=() verdicts=()
failed=0

note() { # NAME VERDICT
  names+=("$1")
  verdicts+=("$2")
}

step() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  local left=$((budget - SECONDS))
  if ((left < 10)); then
    note "$name" "FAILED: no time was left for it"
    failed=1
    return
  fi
  ((limit < left)) || limit=$left
  printf '\n== %s (at most %s s): %s\n' "$name" "$limit" "$*" | tee -a "$log"
  timeout --kill-after=5 "$limit" "$@" 2>&1 | tee -a "$log"
  status=${PIPESTATUS[0]}
  local took=$((SECONDS - start))
  case $status in
    0) note "$name" "ran, $took s" ;;
    124 | 137) note "$name" "FAILED: not done after $limit s" ;;
    *) note "$name" "FAILED with status $status after $took s" ;;
  esac
  ((status == 0)) || failed=1
}

leave_out() { # NAME WHY
  note "$1" "left out: $2"
}

has() { command -v "$1" >/dev/null; }

if [[ $mode == gpu ]] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo "bench/gpu.sh: PyTorch finds no GPU here; bench/gpu.sh --dry runs the same steps without one" >&2
  exit 1
fi

# A GPU machine has no installed package: the checkout is what runs.
export PYTHONPATH=$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}
if [[ $mode == dry ]]; then
  export TRITON_INTERPRET=1
  prefix=$scratch/install # not into the checkout, where it would hide what is installed
  quick=(--shapes tiny --dtypes float32)
  timed=(--shapes tiny one --dtypes float32 --peers eager products copy --seconds 0.05)
  profiled=tiny
else
  prefix=$PWD/kernels
  quick=(--shapes clip batch vqa conv1 conv2 --dtypes bfloat16 float16 tf32 float32)
  timed=(--shapes clip vqa web batch conv1 one full --dtypes bfloat16 tf32 float16 float32 --seconds 0.3)
  profiled=clip
fi

build() {
  cmake -S . -B "$scratch/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DPython_EXECUTABLE="$(command -v "$python")" &&
    cmake --build "$scratch/build" &&
    cmake --install "$scratch/build" --prefix "$prefix"
}
export -f build
export scratch prefix python out

machine() {
  "$python" -m fbp_kernels doctor || return
  if command -v nvidia-smi >/dev/null; then nvidia-smi; fi
}
export -f machine

pack_profile() { tar -C "$scratch" -czf "$out/profile.tar.gz" profile; }

step machine 60 bash -c machine
if has cmake && has ninja; then
  step build 150 bash -c build
else
  leave_out build "cmake and ninja are not both installed"
fi
step parity 120 "$python" -m bench parity --device $device "${quick[@]}"
# Written after every case: a run that is cut off leaves what it has measured.
step timings 300 "$python" -m bench run --device $device "${timed[@]}" --out "$out"
if [[ $mode == dry ]]; then
  leave_out sanitizer "it needs a GPU; this version has no CUDA kernel to compile in its place"
elif has compute-sanitizer; then
  for tool in memcheck racecheck; do
    step "sanitizer $tool" 60 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$python" -m bench parity --device $device --shapes tiny --dtypes float32
  done
else
  leave_out sanitizer "compute-sanitizer is not installed"
fi
step "profile of an operator" 60 "$python" -m profiling.operator am_fbp --shape $profiled --device $device \
  --out "$scratch/profile"
if [[ $mode == dry ]]; then
  leave_out counters "they need a GPU"
elif has ncu; then
  step counters 60 bash -c '"$python" -m profiling.ncu am_fbp --shape clip >"$out/ncu.md"'
else
  leave_out counters "ncu is not installed"
fi
if [[ -d $scratch/profile ]]; then pack_profile; fi

{
  printf '\n== %s, %s s\n' "$mode" "$SECONDS"
  for i in "${!names[@]}"; do printf '%-24s%s\n' "${names[$i]}" "${verdicts[$i]}"; done
  ls -l "$out"
} | tee -a "$log"
exit $failed
