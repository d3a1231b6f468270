"""WebDataset shards: one sample an image, with plain `webdataset` and a DataLoader in mind.

    dataset = webdataset.WebDataset("tars/maps-{00000..00063}-of-00064.tar").decode()
    for sample in dataset:
        maps = sample["layer4.npy"]           # [variants, targets, methods, h, w]
        sample["json"]["layers"]["layer4"]    # its member, its methods, its map_scale

Members of a sample, the same in every sample of a run:

- `json`: image_id, sizes, variants, targets (role, target, names, and logit and probability per
  variant), relu_on_read per method, and per layer: member, methods, height, width and map_scale
  `[variants][targets][methods]`. A map's value is stored x map_scale.
- one `<layer slug>.npy` a layer: float16 (or float32) `[variants, targets, methods, h, w]`, whose
  axes are in the order of the lists in `json`. Methods may differ between layers.

The key is the image id with `%2E` for a dot (a dot would end the key) and `%25` for a percent sign:
two images never share a key, and `urllib.parse.unquote` gives the id back. An image without any map
(its labels are unknown to the model, and no other class was asked for) has no sample.

No gzip, mtime 0, owner and mode fixed: the same maps give the same bytes. A new fact about an image
is a new entry of `json`, which older readers pass over.
"""

import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from itertools import product
from typing import Any

import numpy as np

from pipeline.errors import SettingsError
from pipeline.store import files
from pipeline.store.encoding import MapDtype, StoredMap, decode, encode
from pipeline.store.files import HashedFile
from pipeline.store.records import ImageRecord, MapRecord


def write_tar(
    file: HashedFile, images: Iterable[tuple[ImageRecord, Sequence[MapRecord]]], map_dtype: MapDtype
) -> int:
    """Write one sample an image, in the given order; returns the number of samples.

    Holds one image's maps twice. Raises ValueError where an image's maps are not a full grid of
    variants x targets x methods in each layer.
    """
    import webdataset  # imports torch, which readers and `backlight status` do without

    samples = 0
    with webdataset.TarWriter(file, mtime=0, compress=False) as writer:
        for image, records in images:
            if records:
                writer.write(_sample(image, records, map_dtype))
                samples += 1
    return samples


def read_tar(path: str, signed: bool) -> Iterator[tuple[str, list[MapRecord]]]:
    """Image id and maps, sample by sample, in the order of `schemas.MAP_ORDER` within an image.

    Equal to what the Parquet file of the same shard holds. Holds one sample at a time. With
    `signed` the ReLU of `relu_on_read` is left to the caller.
    """
    with files.open_read(path) as file, tarfile.open(fileobj=file, mode="r|") as tar:
        members: dict[str, bytes] = {}
        key = None
        for member in tar:
            member_key, suffix = _split(member.name)
            if members and member_key != key:
                yield _records(members, signed)
                members = {}
            key = member_key
            members[suffix] = tar.extractfile(member).read()  # type: ignore[union-attr]
        if members:
            yield _records(members, signed)


def count_samples(path: str) -> int:
    """The samples of a tar, from its headers. Raises tarfile.TarError if it is torn."""
    with files.open_read(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        return len({_split(member.name)[0] for member in tar})


def key_of(image_id: str) -> str:
    """The WebDataset key of an image: no dot, and no two ids with the same key."""
    key = image_id.replace("%", "%25").replace(".", "%2E")
    return f"%5F{key[1:]}" if key.startswith("_") else key  # `__x__/` would be skipped as metadata


def layer_members(layers: Iterable[str]) -> dict[str, str]:
    """Layer -> its member in every sample: `layer4.0.conv1` -> `layer4-0-conv1.npy`.

    Raises SettingsError where two layers would share a member (webdataset ignores case).
    """
    members: dict[str, str] = {}
    for layer in sorted(set(layers)):
        member = re.sub(r"[^a-z0-9_]", "-", layer.lower()) + ".npy"
        if twin := next((other for other in members if members[other] == member), None):
            raise SettingsError(
                f"layers {twin!r} and {layer!r} would both be {member} in a WebDataset sample; "
                "ask for one of them, or for --format parquet alone"
            )
        members[layer] = member
    return members


def _sample(
    image: ImageRecord, records: Sequence[MapRecord], map_dtype: MapDtype
) -> dict[str, Any]:
    variants = sorted({record.variant for record in records})
    targets = sorted({_target(record) for record in records})
    members = layer_members(record.layer for record in records)
    grid = {(r.layer, r.variant, _target(r), r.method): r for r in records}
    if len(grid) != len(records):
        raise ValueError(f"two maps of image {image.image_id} are the same")

    layers = {}
    arrays = {}
    for layer, member in members.items():
        methods = sorted({record.method for record in records if record.layer == layer})
        cells = list(product(variants, targets, methods))
        if missing := [cell for cell in cells if (layer, *cell) not in grid]:
            raise ValueError(
                f"image {image.image_id}, layer {layer}: no map of (variant, target, method) "
                f"{missing[0]} and {len(missing) - 1} more; a WebDataset sample holds all of them"
            )
        encoded = [encode(grid[layer, *cell].values, map_dtype) for cell in cells]
        shape = (len(variants), len(targets), len(methods))
        stored = np.stack([cell.stored for cell in encoded])
        arrays[member] = stored.reshape(*shape, *stored.shape[1:])
        layers[layer] = {
            "member": member,
            "methods": methods,
            "height": stored.shape[1],
            "width": stored.shape[2],
            "map_scale": _scales(encoded, shape),
        }

    first = {(r.variant, _target(r)): r for r in reversed(records)}
    description = {
        "image_id": image.image_id,
        "path": image.path,
        "width": image.width,
        "height": image.height,
        "input_width": image.input_width,
        "input_height": image.input_height,
        "view": image.view,
        "variants": variants,
        "targets": [
            {
                "role": role,
                "target": target,
                "target_name": first[variants[0], (role, target, class_name)].target_name,
                "class_name": class_name,
                "logit": [_float32(first[v, (role, target, class_name)].logit) for v in variants],
                "probability": [
                    _float32(first[v, (role, target, class_name)].probability) for v in variants
                ],
            }
            for role, target, class_name in targets
        ],
        "relu_on_read": {r.method: r.relu_on_read for r in sorted(records, key=lambda r: r.method)},
        "layers": layers,
    }
    text = json.dumps(description, ensure_ascii=False, separators=(",", ":"))
    return {"__key__": key_of(image.image_id), "json": text, **arrays}


def _records(members: dict[str, bytes], signed: bool) -> tuple[str, list[MapRecord]]:
    description = json.loads(members["json"])
    relu = description["relu_on_read"]
    records = []
    for layer, facts in description["layers"].items():
        array = np.load(BytesIO(members[facts["member"]]))
        axes = (description["variants"], description["targets"], facts["methods"])
        for v, t, m in np.ndindex(*map(len, axes)):
            target, method = description["targets"][t], facts["methods"][m]
            records.append(
                MapRecord(
                    variant=description["variants"][v],
                    method=method,
                    layer=layer,
                    role=target["role"],
                    target=target["target"],
                    target_name=target["target_name"],
                    class_name=target["class_name"],
                    logit=target["logit"][v],
                    probability=target["probability"][v],
                    relu_on_read=relu[method],
                    values=decode(
                        array[v, t, m],
                        facts["map_scale"][v][t][m],
                        relu=relu[method] and not signed,
                    ),
                )
            )
    return description["image_id"], sorted(
        records, key=lambda r: (r.variant, r.method, r.layer, *_target(r))
    )


def _split(name: str) -> tuple[str, str]:
    """Key and suffix of a member; the key has no dot."""
    key, _, suffix = name.partition(".")
    return key, suffix


def _target(record: MapRecord) -> tuple[str, int, str]:
    return record.role, record.target, record.class_name


def _float32(value: float) -> float:
    """As the Parquet column holds it, so that both formats read back the same."""
    return float(np.float32(value))


def _scales(encoded: Sequence[StoredMap], shape: tuple[int, int, int]) -> list[list[list[float]]]:
    scales: list[list[list[float]]] = np.reshape([cell.scale for cell in encoded], shape).tolist()
    return scales
