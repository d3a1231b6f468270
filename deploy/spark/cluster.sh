#!/usr/bin/env bash
# A Spark cluster on this machine for trying things out: a master, two workers, Beam's job server,
# and a worker pool with Backlight in a Python environment of its own.
#
#   cluster.sh start|stop|status|build
#
# `build` makes what `start` needs and is not there yet, and starts nothing. The folder
# BACKLIGHT_SPARK (.spark/ in the project) holds what is built and the logs; delete it to start
# again from nothing. Needs Java 17, Maven and uv.
set -Eeuo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(cd "$here/../.." && pwd)
home=${BACKLIGHT_SPARK:-$project/.spark}
master_port=${SPARK_MASTER_PORT:-7077}
job_port=${JOB_PORT:-8099}
artifact_port=${ARTIFACT_PORT:-8098}
pool_port=${POOL_PORT:-50000}
workers=${SPARK_WORKERS:-2}
submit_options=${SPARK_SUBMIT_OPTIONS:-}  # for the job server, such as "--conf spark.task.cpus=1"

spark_version=3.5.9
python_version=$(sed -n 's/^requires-python = ">=\(.*\)"/\1/p' "$project/pyproject.toml")
master=spark://127.0.0.1:$master_port
run=$home/run
export SPARK_LOCAL_IP=127.0.0.1
# The pool runs what is installed for it, never the tree that you work in.
unset PYTHONPATH PYTHONHOME SPARK_HOME

main() {
  case ${1:-} in
    start) start ;;
    stop) stop ;;
    status) status ;;
    build) build ;;
    *) echo "usage: $0 start|stop|status|build" >&2; exit 2 ;;
  esac
}

start() {
  if status >/dev/null; then echo "it is running already"; status; return; fi
  stop
  build
  trap 'stop >/dev/null' ERR INT TERM
  mkdir -p "$run"
  launch master "$spark/bin/spark-class" org.apache.spark.deploy.master.Master \
    --host 127.0.0.1 --port "$master_port" --webui-port 0
  answers master "$master_port"
  for i in $(seq "$workers"); do
    launch "worker-$i" "$spark/bin/spark-class" org.apache.spark.deploy.worker.Worker "$master" \
      --host 127.0.0.1 --cores 1 --memory 2g --work-dir "$run/spark" --webui-port 0
    says "worker-$i" "Successfully registered with master"
  done
  # spark-submit brings the Java 17 flags, and the jar to the executors.
  launch job-server "$spark/bin/spark-submit" --master "$master" $submit_options \
    --class org.apache.beam.runners.spark.SparkJobServerDriver "$home/job-server.jar" \
    --job-host=127.0.0.1 --job-port="$job_port" --artifact-port="$artifact_port" \
    --expansion-port=0 --artifacts-dir="$run/artifacts" --spark-master-url="$master"
  answers job-server "$job_port"
  # The pool starts its workers by the word `python`: its own environment must come first in PATH.
  PATH=$home/pool/bin:$PATH launch worker-pool \
    python -m apache_beam.runners.worker.worker_pool_main --service_port="$pool_port"
  answers worker-pool "$pool_port"
  trap - ERR INT TERM
  status
}

stop() {
  local file pid
  for file in "$run"/*.pid; do
    [ -e "$file" ] || continue
    pid=$(<"$file")
    kill -- "-$pid" 2>/dev/null || true
    for _ in $(seq 50); do kill -0 -- "-$pid" 2>/dev/null || break; sleep 0.1; done
    kill -9 -- "-$pid" 2>/dev/null || true
    rm "$file"
  done
  rm -rf "$run/spark" "$run/artifacts"
  echo "stopped; the logs are in $run"
}

status() {
  local file found=0
  for file in "$run"/*.pid; do
    [ -e "$file" ] || continue
    if kill -0 "$(<"$file")" 2>/dev/null; then
      printf '%-12s process %s, log %s\n' "$(basename "$file" .pid)" "$(<"$file")" "${file%.pid}.log"
      found=$((found + 1))
    fi
  done
  if [ "$found" -ne $((workers + 3)) ]; then echo "not running: $found of $((workers + 3)) parts"; return 1; fi
  echo "master $master; give backlight the options:"
  echo "  -- --runner=PortableRunner --job_endpoint=127.0.0.1:$job_port" \
    "--environment_type=EXTERNAL --environment_config=127.0.0.1:$pool_port"
}

# Everything that is not there yet; the pool's Backlight is always installed again.
build() {
  local tool
  for tool in java mvn uv; do
    command -v "$tool" >/dev/null || { echo "$tool is missing: install Java 17, Maven and uv" >&2; exit 1; }
  done
  mkdir -p "$home"
  if [ ! -d "$home/spark" ]; then
    uv venv --quiet --python "$python_version" "$home/spark.new"
    uv pip install --quiet --python "$home/spark.new" "pyspark==$spark_version"
    mv "$home/spark.new" "$home/spark"
  fi
  spark=$(echo "$home"/spark/lib/python*/site-packages/pyspark)
  if [ ! "$home/job-server.jar" -nt "$here/pom.xml" ]; then
    cp "$here/pom.xml" "$home/pom.xml"
    mvn -B -q -f "$home/pom.xml" package
    cp "$home/target/job-server.jar" "$home/job-server.jar"
  fi
  [ -d "$home/pool" ] || uv venv --quiet --seed --python "$python_version" "$home/pool"
  cd "$project"  # where uv finds the pinned versions
  uv build --quiet --wheel --out-dir "$home/dist" --clear
  uv pip install --quiet --python "$home/pool" --reinstall-package backlight "$home"/dist/*.whl
}

# A process in a session of its own, so that stop reaches the executors and workers that it starts.
launch() {
  local name=$1
  shift
  (cd "$run" && exec setsid "$@" >"$run/$name.log" 2>&1 </dev/null) &
  echo $! >"$run/$name.pid"
}

answers() {
  for _ in $(seq 240); do
    (: >"/dev/tcp/127.0.0.1/$2") 2>/dev/null && return
    alive "$1"
    sleep 0.25
  done
  echo "$1 does not answer on port $2; see $run/$1.log" >&2
  return 1
}

says() {
  for _ in $(seq 240); do
    grep -q "$2" "$run/$1.log" && return
    alive "$1"
    sleep 0.25
  done
  echo "$1 did not say '$2'; see $run/$1.log" >&2
  return 1
}

alive() {
  kill -0 "$(<"$run/$1.pid")" 2>/dev/null && return
  echo "$1 ended:" >&2
  tail -n 20 "$run/$1.log" >&2
  return 1
}

main "$@"
