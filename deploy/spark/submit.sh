#!/usr/bin/env bash
# Run a backlight command on a Spark cluster.
#
#   submit.sh generate --source coco … OUT               by the job server; waits for the end
#   JAR=job.jar submit.sh generate --source coco … OUT   makes a jar, which spark-submit runs
#
# JOB_ENDPOINT, ENVIRONMENT_TYPE and ENVIRONMENT_CONFIG say where the job server is and how workers
# start (README.md); SPARK_SUBMIT is the command that gets the jar, with its options.
set -euo pipefail

beam=(
  --runner=PortableRunner
  "--job_endpoint=${JOB_ENDPOINT:-127.0.0.1:8099}"
  "--environment_type=${ENVIRONMENT_TYPE:-EXTERNAL}"
)
config=${ENVIRONMENT_CONFIG-127.0.0.1:50000}
[ -z "$config" ] || beam+=("--environment_config=$config")
[ -z "${JAR:-}" ] || beam+=("--output_executable_path=$JAR")

backlight "$@" -- "${beam[@]}"
[ -z "${JAR:-}" ] || exec ${SPARK_SUBMIT:-spark-submit --master spark://127.0.0.1:7077} "$JAR"
