#!/usr/bin/env bash
# Creates the environment, segments the examples, then trains and evaluates on the built-in shapes.
# usage: bash tools/quickstart.sh [KEY VALUE ...]
# The pairs override keys of the configuration, e.g. SOLVER.MAX_ITER 100 SOLVER.WARMUP_ITERS 20.
set -euo pipefail
case "${1:-}" in -h | --help)
  sed -n "2,4s/^# //p" "$0"
  exit ;;
esac
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$(bash "$root/tools/env.sh")
cd "$root"
# A borrowed environment has no rpe_d2 installed.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1
config=configs/quickstart/rpe_shapes.yaml

# Every run has its own folder: mkdir succeeds for one run only, even if two start at once.
mkdir -p output
output=output/quickstart
number=2
until mkdir "$output" 2>/dev/null; do
  if [ ! -d "$output" ]; then
    echo "error: cannot create $root/$output: check its permissions and the disk" >&2
    exit 1
  fi
  output=output/quickstart-$number
  number=$((number + 1))
done

echo "[quickstart] labels of the examples, by a model that comes with rpe_d2" >&2
"$python" -W ignore tools/predict.py examples/*.png --model nuclei --output "$output/examples" \
  --save tif overlay
echo "Pictures, after $((SECONDS / 60)) min $((SECONDS % 60)) s:"
ls -1 "$output"/examples/overlays/*
echo

probe='import torch; print("cuda" if torch.cuda.is_available() else "cpu")'
device=$("$python" -c "$probe")
echo "[quickstart] training $config on $device into $output" >&2
"$python" tools/train_net.py --config-file "$config" "$@" \
  MODEL.DEVICE "$device" OUTPUT_DIR "$output"

echo "[quickstart] pictures" >&2
"$python" tools/visualize.py --config-file "$output/config.yaml" \
  --weights "$output/model_final.pth" --dataset shapes_val --num-images 4 \
  --output "$output/pictures"

echo
"$python" -W ignore -c 'import json, sys
from rpe_d2.engine.run_record import print_table
print_table(json.load(open(sys.argv[1]))["metrics"])' "$output/result.json"
echo
echo "Pictures, after $((SECONDS / 60)) min $((SECONDS % 60)) s:"
ls -1 "$output"/pictures/*
