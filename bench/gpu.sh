#!/usr/bin/env bash
# All that needs a GPU, in order of worth: build, what the compiler makes of the kernels, parity, timings, sanitizer,
# tuning, profile, counters.
#
#   bench/gpu.sh [STEP ...]          on a machine with a GPU
#   bench/gpu.sh --dry [STEP ...]    anywhere: the same steps with interpreter and compiler in place of it, tiny sizes
#
# No step is needed by the next one to start, each is bounded, and all together end within nine minutes. Steps may be
# named, by their first word, to be the only ones: those at the end may have found no time left. What ran, what failed
# and what was left out is printed last; the exit status is 1 where a step failed. Results go to the folder $OUT
# (default runs/gpu): a log, the timings as JSON under the name that bench/results has them by, the table of
# configurations that tuning found, the profile in one archive. On a GPU, timings go on with the file of an earlier
# call, if it is in $OUT: what is in it is not measured again.
set -uo pipefail
cd "$(dirname "$0")/.."

steps=(machine build resources parity timings sanitizer tuning profile counters)
usage() {
  echo "usage: bench/gpu.sh [--dry] [STEP ...], steps: ${steps[*]}" >&2
  exit 2
}

mode=gpu device=cuda
if [[ ${1:-} == --dry ]]; then
  mode=dry device=cpu
  shift
fi
for name in "$@"; do
  [[ " ${steps[*]} " == *" $name "* ]] || usage
done
(($# == 0)) || steps=("$@")

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

asked() { # NAME: whether a step is to run, by the first word of its name
  [[ " ${steps[*]} " == *" ${1%% *} "* ]]
}

step() { # NAME SECONDS COMMAND...
  asked "$1" || return
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
  asked "$1" || return
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
  right=(--shapes tiny --dtypes float32 bfloat16)
  goals=(--shapes tiny --operators am_fbp fbp_biased --dtypes bfloat16 --peers eager products --seconds 0.05)
  others=(--shapes tiny --dtypes float32 --peers eager products copy --seconds 0.05)
  profiled=tiny architecture=sm90 capability=
  rm -f "$out"/bench-*.json
else
  unset TRITON_INTERPRET
  prefix=$PWD/kernels
  right=(--shapes clip vqa conv1 --dtypes bfloat16 float16 tf32 float32 --backends native triton)
  right_large=(--shapes batch web conv2 --dtypes bfloat16 tf32 --backends native triton)
  goals=(--shapes clip vqa web --operators am_fbp fbp fbp_biased --dtypes bfloat16
    --peers eager compile max-autotune products --seconds 0.3)
  others=(--shapes clip vqa web batch conv1 one full --dtypes bfloat16 tf32 float16 float32
    --operators am_fbp fbp trunk_fbp fbp_biased attention_pool local_response_norm power_normalize batch_norm
    training_step
    --peers eager channels-last compile products mfb copy --seconds 0.2)
  profiled=clip
  family='import torch; from fbp_kernels.triton import launch; print(launch.architecture(torch.device("cuda")))'
  architecture=$("$python" -c "$family")
  # As nvcc names it: Hopper's has instructions that no other has.
  name='import torch; a, b = torch.cuda.get_device_capability(); print(f"{a}{b}" + "a" * (a == 9) + "-real")'
  capability=$("$python" -c "$name")
fi

build() {
  local cuda=()
  # For the GPU that is here alone: every further architecture is another minute.
  if [[ -n $capability ]]; then cuda=(-DFBP_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$capability"); fi
  cmake -S . -B "$scratch/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DPython_EXECUTABLE="$(command -v "$python")" "${cuda[@]}" &&
    cmake --build "$scratch/build" &&
    cmake --install "$scratch/build" --prefix "$prefix"
}

machine() {
  "$python" -m fbp_kernels doctor || return
  if command -v nvidia-smi >/dev/null; then nvidia-smi; fi
}

# Tuning checks candidates against the table's configuration; what it has chosen has to pass against float64, too.
tuned_parity() {
  mkdir "$scratch/tuned" && cp -r kernels/fbp_kernels "$scratch/tuned" &&
    cp "$out/table.json" "$scratch/tuned/fbp_kernels/triton/table.json" &&
    PYTHONPATH=$PWD:$scratch/tuned "$python" -m bench parity --device cuda --backends triton "$@"
}
export -f build machine tuned_parity
export scratch prefix python out capability

pack_profile() { tar -C "$scratch" -czf "$out/profile.tar.gz" profile; }

step machine 60 bash -c machine
if has cmake && has ninja; then
  step build 150 bash -c build
else
  leave_out build "cmake and ninja are not both installed"
fi
# Many processes fill Triton's cache, from which the next steps take what one process would compile for minutes.
step resources 200 env -u TRITON_INTERPRET "$python" -m fbp_kernels.resources "$architecture" --check \
  --processes "$(nproc)"
step parity 100 "$python" -m bench parity --device $device "${right[@]}"
if [[ $mode == gpu ]]; then
  step "parity (large)" 60 "$python" -m bench parity --device $device "${right_large[@]}"
fi
# Written after every case: a run that is cut off leaves what it has measured.
step "timings of the goals" 160 "$python" -m bench run --device $device "${goals[@]}" --out "$out" --resume
step "timings of the rest" 100 "$python" -m bench run --device $device "${others[@]}" --out "$out" --resume
if [[ $mode == dry ]]; then
  leave_out sanitizer "it needs a GPU"
elif has compute-sanitizer; then
  # Without PyTorch's own allocator, so that each tensor has bounds of its own. Parity fills fresh tensors with NaN: what
  # reads one before it is written shows there, and initcheck sees only what is allocated besides.
  for tool in memcheck racecheck initcheck synccheck; do
    step "sanitizer $tool" 40 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" \
      --error-exitcode 9 "$python" -m bench parity --device $device --backends native triton \
      --shapes tiny --dtypes float32 bfloat16
  done
else
  leave_out sanitizer "compute-sanitizer is not installed"
fi
if [[ $mode == dry ]]; then
  leave_out tuning "it needs a GPU"
else
  step tuning 110 "$python" -m fbp_kernels.tune --seconds 90 --out "$out/table.json"
  if [[ -f $out/table.json ]]; then
    step "tuning (parity)" 60 bash -c 'tuned_parity "$@"' - --shapes clip vqa web conv1 --dtypes bfloat16 tf32
  fi
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
  for i in "${!names[@]}"; do printf '%-26s%s\n' "${names[$i]}" "${verdicts[$i]}"; done
  ls -l "$out"
} | tee -a "$log"
exit $failed
