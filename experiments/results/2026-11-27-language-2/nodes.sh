# Starts the four nodes of run.toml in this folder, or goes on where they were.
cd "$(dirname "$0")" || exit 1
for n in 0 1 2 3; do
  peers=""
  for o in 0 1 2 3; do [ $o != $n ] && peers="$peers --peer /ip4/127.0.0.1/tcp/$((4710 + o))"; done
  export=""; [ $n = 0 ] && export="--export tuned"
  rumormill node --run run.toml --data-dir n$n --listen /ip4/127.0.0.1/tcp/$((4710 + n)) $peers --no-mdns --timeout 100000 $export 2>> n$n.err &
done
wait
