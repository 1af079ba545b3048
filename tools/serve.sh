#!/usr/bin/env bash
# serve.sh MODEL HOST PORT [FLAG...]: runs the server in the foreground; once it is ready, prints a curl that works.
set -euo pipefail
cd "$(dirname "$0")/.."
model=$1 host=$2 port=$3
shift 3

case $host in # an address that means "every interface" can't be called itself
  0.0.0.0) url=http://127.0.0.1:$port ;;
  ::) url=http://[::1]:$port ;;
  *:*) url=http://[$host]:$port ;;
  *) url=http://$host:$port ;;
esac
if curl -s -o /dev/null --max-time 2 "$url/health"; then
  echo "serve: FAILED: something already answers at $url; choose another port: make serve PORT=$((port + 1))" >&2
  exit 1
fi

announce() {
  until curl -sf -o /dev/null --max-time 2 "$url/health"; do
    kill -0 $$ 2>/dev/null || return 0 # the server has gone: it has said why
    sleep 0.2
  done
  cat <<TEXT

Ready at $url. In another terminal:

  curl $url/v1/chat/completions -H 'Content-Type: application/json' -d '{
    "model": "$model",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0}'

Ctrl-C stops the server.
TEXT
}
for library in .venv-cuda/lib/python3.*/site-packages/mlx/lib; do # made by set-up where an NVIDIA driver answers
  [ ! -d "$library" ] || export LD_LIBRARY_PATH="$PWD/$library${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
done
announce & # `exec` keeps this shell's process id, so that signals reach the server itself
exec build/bin/mlx_parallm_serve --model-path "$model" --host "$host" --port "$port" "$@"
