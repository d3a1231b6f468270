#!/usr/bin/env bash
# Submit a run to Dataflow with one GPU for each worker that explains:
#
#   PROJECT=P REGION=R BUCKET=B IMAGE=I deploy/dataflow/submit.sh \
#     --source coco --root gs://B/coco --split train2017 --model resnet50 \
#     --weights gs://B/weights/resnet50.pth gs://B/maps [-- MORE BEAM OPTIONS]
#
# GPU=nvidia-l4 MACHINE=g2-standard-4 WORKERS=4 DISK_GB=50 and LABEL=app=backlight are the defaults;
# GPU= (empty) asks for none.
set -euo pipefail
: "${PROJECT:?the Google Cloud project}" "${REGION:?its region, such as europe-west4}"
: "${BUCKET:?a bucket in that region, without gs://}" "${IMAGE:?the worker image (Dockerfile)}"
GPU=${GPU-nvidia-l4}

command=(backlight generate)
[[ -z $GPU ]] || command+=(--accelerator "type:$GPU;count:1;install-nvidia-driver")
while (($#)) && [[ $1 != -- ]]; do
  command+=("$1")
  shift
done
command+=(--
  --runner=DataflowRunner --project="$PROJECT" --region="$REGION"
  --temp_location="gs://$BUCKET/dataflow/temp" --staging_location="gs://$BUCKET/dataflow/staging"
  --sdk_container_image="$IMAGE" --sdk_location=container
  --machine_type="${MACHINE-g2-standard-4}" --max_num_workers="${WORKERS-4}"
  --disk_size_gb="${DISK_GB-50}" --labels="${LABEL-app=backlight}")
exec "${command[@]}" "${@:2}"
