# usage: watch.sh DEV.tsv; a line of the curve every seven minutes, as long as node 0 runs. Needs python3.
cd "$(dirname "$0")" || exit 1
[ -f curve.csv ] || echo "round,probes,processor_s,held_out_loss,held_out_accuracy,dev_loss,dev_accuracy" > curve.csv
while pgrep -f "n0 --listen" > /dev/null; do
  rumormill checkpoint --data-dir n0 --out now.ck --json > now.json || { sleep 60; continue; }
  processor=$(ps -eo cputimes,args | awk '/rumormill node --run/ && !/awk/ { s += $1 } END { print s }')
  status=$(rumormill status --data-dir n0 --json)
  held=$(rumormill eval --data-dir n0 --checkpoint now.ck --json)
  dev=$(rumormill eval --data-dir n0 --checkpoint now.ck --data "$1" --json)
  python3 - "$processor" "$status" "$held" "$dev" "$(cat now.json)" >> curve.csv <<'P'
import json, sys
status, held, dev, at = (json.loads(text) for text in sys.argv[2:])
probes = status["counts"]["accepted"] + status["probes"]
print(at["round"], probes, sys.argv[1], held["loss"], held["accuracy"], dev["loss"], dev["accuracy"], sep=",")
P
  rm -f now.ck
  sleep 420
done
