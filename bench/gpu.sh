#!/usr/bin/env bash
# All that needs a GPU, in order of worth: what matters most in the first five minutes, all of it within nine.
#
#   bench/gpu.sh [STEP ...]          on a machine with a GPU
#   bench/gpu.sh --dry [STEP ...]    anywhere: the same steps with interpreter and compiler in place of it, tiny sizes
#
# No step is needed by the next one to start, and each is bounded. Results go to the folder $OUT (default runs/gpu): a
# log, verdicts of parity and timings as JSON under the names that bench/results has them by, the table of configurations
# that tuning found, one archive of profiles, and which steps are done. With the $OUT of an earlier call at the same
# commit, on the same kind of machine, a call goes on where that one ended: steps that are done are left out, and what is
# measured is not measured again. Steps may be named to be the only ones; those are run whether or not they are done.
# What ran, what failed and what was left out is printed last; the exit status is 1 where a step failed.
#
# The extension is taken as it is in kernels/fbp_kernels, or from the folder $FBP_PREBUILT (`make prebuilt` makes one:
# dist/prebuilt/kernels/fbp_kernels), where it is of these sources and loads; else it is built.
set -uo pipefail
cd "$(dirname "$0")/.."

steps=(machine build warm parity goals memcheck racecheck synccheck rest resources tuning profile counters)
usage() {
  echo "usage: bench/gpu.sh [--dry] [STEP ...], steps: ${steps[*]}" >&2
  exit 2
}

mode=gpu device=cuda patience=1
if [[ ${1:-} == --dry ]]; then
  mode=dry device=cpu patience=3 # limits are those of a GPU machine
  shift
fi
for name in "$@"; do
  [[ " ${steps[*]} " == *" $name "* ]] || usage
done
named=("$@")

python=${PYTHON:-python3}
scratch=$(mktemp -d)
warming=
trap '[[ -z $warming ]] || kill "$warming" 2>/dev/null; rm -rf "$scratch"' EXIT

# A GPU machine has no installed package: the checkout is what runs.
export PYTHONPATH=$PWD:$PWD/kernels${PYTHONPATH:+:$PYTHONPATH}

out=${OUT:-runs/gpu}
budget=${GPU_SECONDS:-530} # seconds for everything
mkdir -p "$out"
out=$(cd "$out" && pwd)
log=$out/gpu.log done_file=$out/steps
names=() verdicts=()
failed=0

note() { # NAME VERDICT
  names+=("$1")
  verdicts+=("$2")
}

word() { echo "${1%% *}"; }

asked() { # NAME: whether a step is to run, by the first word of its name
  local name
  name=$(word "$1")
  if ((${#named[@]})); then
    [[ " ${named[*]} " == *" $name "* ]]
  elif grep -qxF "$1" "$done_file" 2>/dev/null; then
    note "$1" "done by an earlier call"
    return 1
  fi
}

step() { # NAME SECONDS COMMAND...
  asked "$1" || return
  local name=$1 limit=$(($2 * patience)) start=$SECONDS status
  shift 2
  local left=$((budget - SECONDS))
  if ((left < 10)); then
    note "$name" "FAILED: no time was left for it"
    failed=1
    return
  fi
  ((limit < left)) || limit=$left
  printf '\n== %s (at most %s s, %s s in): %s\n' "$name" "$limit" "$SECONDS" "$*" | tee -a "$log"
  timeout --kill-after=10 "$limit" "$@" 2>&1 | tee -a "$log"
  status=${PIPESTATUS[0]}
  ended "$name" "$status" $((SECONDS - start)) "$limit"
}

ended() { # NAME STATUS SECONDS LIMIT
  case $2 in
    0) note "$1" "ran, $3 s" && echo "$1" >>"$done_file" ;;
    124 | 137) note "$1" "FAILED: not done after $4 s" ;;
    *) note "$1" "FAILED with status $2 after $3 s" ;;
  esac
  (($2 == 0)) || failed=1
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

bilinear=(fbp trunk_fbp am_fbp fbp_biased fbp_adaptive trunk_fbp_ragged am_fbp_ragged)
if [[ $mode == dry ]]; then
  export TRITON_INTERPRET=1
  cache=$scratch/cache
  prefix=$scratch/install # not into the checkout, where it would hide what is installed
  # What an editable install has compiled is not compiled again.
  for tree in build/py3-none-* "$scratch/build"; do [[ ! -f $tree/_native.so ]] || break; done
  right=(--shapes tiny --dtypes bfloat16 --processes 2)
  right_large=() right_wgmma=()
  small=(--shapes tiny --operators am_fbp_tiles --dtypes bfloat16 --backends native --peers products)
  goals=(--shapes tiny --operators fbp_biased --dtypes bfloat16)
  goal_peers=(eager products) timed=(--seconds 0.05)
  warmed=(--shapes tiny --operators fbp_biased --modes forward --peers eager --processes 1)
  others=(--shapes tiny --operators local_response_norm power_normalize --dtypes float32 --peers eager copy
    --seconds 0.05)
  profiled=tiny architecture=sm90 capability= compiled=(--modules local_response_norm)
  # A rehearsal measures anew, whatever an earlier one left.
  rm -rf "$out"/bench-*.json "$out"/parity-*.json "$out"/parity-*.parts "$out"/*.journal "$done_file"
else
  unset TRITON_INTERPRET
  cache=${FBP_GPU_CACHE:-${TMPDIR:-/tmp}/fbp-gpu-cache} # beyond this call: a second one compiles nothing again
  prefix=$PWD/kernels tree=$scratch/build
  right=(--shapes clip vqa batch conv1 conv2 one tiny few many --dtypes bfloat16 float16 tf32 float32 --backends native triton
    --processes 8)
  # In float64, attention over so many frames does not fit a device.
  right_large=(--shapes web --dtypes bfloat16 float16 tf32 float32 --backends native triton --processes 3
    --operators "${bilinear[@]}" power_normalize)
  # Sizes and dtypes for which Hopper has kernels of its own, forward and backward, which no GPU has run yet.
  right_wgmma=(--shapes few many clip vqa web batch --dtypes bfloat16 float16 tf32 --backends native --operators
    "${bilinear[@]}" --processes 3)
  goals=(--shapes clip web vqa --operators am_fbp fbp_biased fbp --dtypes bfloat16)
  # Hopper's own kernels beside those by tiles, in whose place they stand; where there are none, both are the same.
  small=(--shapes clip batch --operators am_fbp am_fbp_tiles --dtypes bfloat16 tf32 --backends native --peers products)
  goal_peers=(eager compile max-autotune products) timed=(--seconds 0.3)
  warmed=("${goals[@]}" --peers compile max-autotune --processes 10)
  others=(--shapes clip vqa web batch conv1 one full --dtypes bfloat16 tf32 float16 float32
    --operators am_fbp fbp trunk_fbp fbp_biased attention_pool local_response_norm power_normalize batch_norm
    training_step
    --peers eager channels-last compile products mfb copy --seconds 0.2)
  profiled=clip compiled=()
  family='import torch; from fbp_kernels.triton import launch; print(launch.architecture(torch.device("cuda")))'
  architecture=$("$python" -c "$family")
  # As nvcc names it: Hopper's has instructions that no other has.
  name='import torch; a, b = torch.cuda.get_device_capability(); print(f"{a}{b}" + "a" * (a == 9) + "-real")'
  capability=$("$python" -c "$name")
fi
# Kernels that one process compiled are found by the next, whoever wrote them.
export TRITON_CACHE_DIR=$cache/triton TORCHINDUCTOR_CACHE_DIR=$cache/inductor
mkdir -p "$TRITON_CACHE_DIR" "$TORCHINDUCTOR_CACHE_DIR"

# Which machine, software and commit the results in $OUT are of.
state=$("$python" -c 'import sys; from bench import machine
print({k: v for k, v in machine.describe(sys.argv[1]).items() if k not in ("date", "instruction_set")})' "$device" 2>&1)
if [[ -f $done_file && $(head -n 1 "$done_file") != "$state" ]]; then
  printf 'bench/gpu.sh: the results in %s are of another state; name another folder OUT\n  there: %s\n  here:  %s\n' \
    "$out" "$(head -n 1 "$done_file")" "$state" >&2
  exit 2
fi
[[ -f $done_file ]] || echo "$state" >"$done_file"
printf '\n== a call of %s, %s\n' "$(date -u +%FT%TZ)" "$state" >>"$log"

machine() {
  "$python" -m fbp_kernels doctor || return
  if command -v nvidia-smi >/dev/null; then nvidia-smi; fi
}

build() {
  local cuda=()
  if [[ -n $capability ]]; then cuda=(-DFBP_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$capability"); fi
  if [[ -f $tree/_native.so ]]; then
    echo "compiled already, in $tree"
  else
    cmake -S . -B "$tree" -G Ninja -DCMAKE_BUILD_TYPE=Release \
      -DPython_EXECUTABLE="$(command -v "$python")" "${cuda[@]}" &&
      cmake --build "$tree" || return
  fi
  cmake --install "$tree" --prefix "$prefix" &&
    "$python" kernels/sources.py >"$prefix/fbp_kernels/_native.sources"
}

loads() { # why the extension in the checkout is not to be taken, or nothing
  local stamp=kernels/fbp_kernels/_native.sources
  [[ -f kernels/fbp_kernels/_native.so ]] || { echo "there is none"; return; }
  if [[ ! -f $stamp || $(<"$stamp") != "$("$python" kernels/sources.py)" ]]; then
    echo "it is not known to be of these sources"
    return
  fi
  "$python" -c 'from fbp_kernels import native; print(native.CUDA_MISSING or native.MISSING)' 2>&1
}

extension() { # takes what is there, else builds for the GPU that is here alone: every architecture is another minute
  if [[ -n $capability ]]; then
    if [[ -n ${FBP_PREBUILT:-} ]]; then cp "$FBP_PREBUILT"/_native* kernels/fbp_kernels; fi
    local why
    why=$(loads)
    if [[ -z $why ]]; then
      echo "taken as it is"
      return
    fi
    echo "the extension is built: of the one that is there, $why"
  fi
  if ! command -v cmake >/dev/null || ! command -v ninja >/dev/null; then
    echo "cmake and ninja are not both installed"
    return 1
  fi
  build
}

# What tuning has chosen is compared at the sizes that are measured, too.
tuned_parity() {
  mkdir "$scratch/tuned" && cp -r kernels/fbp_kernels "$scratch/tuned" &&
    cp "$out/table.json" "$scratch/tuned/fbp_kernels/triton/table.json" &&
    PYTHONPATH=$PWD:$scratch/tuned "$python" -m bench parity --device cuda --backends triton "$@"
}
export -f build machine loads extension tuned_parity
export scratch prefix tree python out capability

start_warming() { # peers are compiled beside parity; nothing is timed before they are
  asked warm || return
  timeout --kill-after=5 "$1" "$python" -m bench warm --device $device "${warmed[@]}" >"$scratch/warm.log" 2>&1 &
  warming=$! warming_since=$SECONDS warming_limit=$1
}

await_warming() {
  [[ -n $warming ]] || return
  local status
  wait "$warming"
  status=$?
  printf '\n== warm (beside parity)\n' | cat - "$scratch/warm.log" | tee -a "$log"
  ended warm "$status" $((SECONDS - warming_since)) "$warming_limit"
  warming=
}

sanitizer() { # TOOL SECONDS SECONDS: the kernels of Hopper alone, which none of the tiny shapes is for, then all others
  if [[ $mode == dry ]]; then
    leave_out "$1" "it needs a GPU"
  elif has compute-sanitizer; then
    # Without PyTorch's own allocator, so that each tensor has bounds of its own. What is read before it is written shows
    # in parity, which fills fresh tensors with NaN.
    local checked=(env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 9
      "$python" -m bench parity --device $device)
    step "$1 (wgmma)" "$2" "${checked[@]}" --backends native --shapes few many --dtypes bfloat16 tf32 \
      --operators "${bilinear[@]}"
    step "$1" "$3" "${checked[@]}" --backends native triton --shapes tiny --dtypes float32 bfloat16
  else
    leave_out "$1" "compute-sanitizer is not installed"
  fi
}

step machine 40 bash -c machine
step build 150 bash -c extension
start_warming 170
if ((${#right_wgmma[@]})); then
  step "parity (wgmma)" 75 "$python" -m bench parity --device $device "${right_wgmma[@]}" --out "$out" --resume
fi
step parity 130 "$python" -m bench parity --device $device "${right[@]}" --out "$out" --resume
if ((${#right_large[@]})); then
  step "parity (large)" 60 "$python" -m bench parity --device $device "${right_large[@]}" --out "$out" --resume
fi
await_warming
step "goals (small)" 40 "$python" -m bench run --device $device "${small[@]}" --seconds 0.2 --out "$out" --resume
# Written after every case: a run that is cut off leaves what it has measured.
step goals 160 "$python" -m bench run --device $device "${goals[@]}" --peers "${goal_peers[@]}" "${timed[@]}" \
  --out "$out" --resume
sanitizer memcheck 45 60
sanitizer racecheck 45 60
sanitizer synccheck 30 45
step rest 110 "$python" -m bench run --device $device "${others[@]}" --out "$out" --resume
step resources 200 env -u TRITON_INTERPRET "$python" -m fbp_kernels.tools.resources "$architecture" "${compiled[@]}" --check \
  --processes "$(nproc)"
if [[ $mode == dry ]]; then
  leave_out tuning "it needs a GPU"
else
  step tuning 110 "$python" -m fbp_kernels.tools.tune --seconds 90 --out "$out/table.json"
  if [[ -f $out/table.json ]]; then
    step "tuning (parity)" 60 bash -c 'tuned_parity "$@"' - --shapes clip vqa web conv1 --dtypes bfloat16 tf32 \
      --operators "${bilinear[@]}" local_response_norm power_normalize
  fi
fi
mkdir -p "$scratch/profile"
step "profile of an operator" 60 "$python" -m profiling.operator am_fbp --shape $profiled --device $device \
  --out "$scratch/profile"
if [[ $mode == dry ]]; then
  leave_out counters "they need a GPU"
elif has ncu; then
  step counters 60 bash -c '"$python" -m profiling.ncu am_fbp --shape clip >"$scratch/profile/ncu.md"'
else
  leave_out counters "ncu is not installed"
fi
if [[ -n $(ls -A "$scratch/profile") ]]; then tar -C "$scratch" -czf "$out/profile.tar.gz" profile; fi

{
  printf '\n== %s, %s s\n' "$mode" "$SECONDS"
  for i in "${!names[@]}"; do printf '%-26s%s\n' "${names[$i]}" "${verdicts[$i]}"; done
  ls -l "$out"
} | tee -a "$log"
exit $failed
