#!/usr/bin/env bash
# Records what stands in benchmarks/results/<folder>: kernels, their errors by length, and a training step, on this GPU.
#   benchmarks/record.sh h100        about three minutes; every file is whole up to the last shape that finished
set -uo pipefail
cd "$(dirname "$0")/.."
folder=benchmarks/results/${1:?"name the folder, for example: benchmarks/record.sh h100"}
suite="python3 -m suite"
status=0
$suite bench training --graph --steps 60 --out "$folder/training" || status=$?
$suite bench kernels selective_scan --implementations cuda,triton --dtypes bfloat16 --out "$folder/kernels" || status=$?
$suite bench kernels causal_conv1d linear_scan s4d_conv attention cross_entropy rms_norm --dtypes bfloat16,float32 \
  --implementations cuda,triton,cudnn,flash,efficient,whole,chunked,vandermonde_fft --out "$folder/kernels" || status=$?
$suite bench kernels selective_scan --errors --implementations cuda,triton --dtypes bfloat16,float32 --out "$folder/kernels" || status=$?
exit $status
