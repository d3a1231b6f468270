"""Maps as WebDataset: `tars/`, one sample per image, for plain `webdataset` and a DataLoader.

    dataset = webdataset.WebDataset("tars/maps-{00000..00063}-of-00064.tar").decode()
    for sample in dataset:
        maps = sample["layer4.npy"]           # [variants, targets, methods, h, w]
        sample["json"]["layers"]["layer4"]    # its member, its methods, its map_scale

Members of a sample, the same in every sample of a run:

- `json`: image_id, sizes, variants, targets (role, target, names, and logit and probability per
  variant), relu_on_read per method, and per layer: member, methods, height, width and map_scale
  `[variants][targets][methods]`. A map's value is stored x map_scale.
- one `<layer slug>.npy` per layer: float16 (or float32) `[variants, targets, methods, h, w]`, whose
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import files
from pipeline.files import HashedFile
from pipeline.store.encoding import MapDtype, StoredMap, decode, encode_all
from pipeline.store.filters import Filters
from pipeline.store.records import ImageAndMaps, ImageRecord, MapRecord
from pipeline.store.rows import table_of_maps
from pipeline.store.understood import understood
from transforms.map_key import MapKey

HOW_TO_LOAD = '''\
WebDataset, one sample per image; `<layer>.npy` is `[variants, targets, methods, h, w]` in the order
of the lists in `json`, to be multiplied by `map_scale` (and `relu_on_read` says for which methods
negative values count as 0).

webdataset, with a DataLoader. Images have different numbers of targets, and layers have different
sizes, so a batch holds lists. Give the loader no more workers than there are tars:

```python
from glob import glob

import numpy as np
import torch
import webdataset
from torch.utils.data import DataLoader


def maps_of(sample):
    """Image id, and layer -> float32 [variants, targets, methods, h, w]."""
    about = sample["json"]
    maps = {}
    for layer, facts in about["layers"].items():
        scale = np.array(facts["map_scale"], np.float32)[..., None, None]
        values = torch.from_numpy(sample[facts["member"]].astype(np.float32) * scale)
        relu = torch.tensor([about["relu_on_read"][method] for method in facts["methods"]])
        maps[layer] = torch.where(relu[:, None, None], values.clamp(min=0), values)
    return about["image_id"], maps


def collate(samples):
    """Image ids, and layer -> a list with the maps of each image."""
    image_ids, maps = zip(*samples)
    return image_ids, {layer: [each[layer] for each in maps] for layer in maps[0]}


dataset = webdataset.WebDataset(sorted(glob("tars/*.tar")), shardshuffle=False)
loader = DataLoader(dataset.decode().map(maps_of), batch_size=4, collate_fn=collate)
for image_ids, maps in loader:
    values = maps["{layer}"][0]  # of image_ids[0]
```

numpy alone:

```python
import json
import tarfile
from io import BytesIO

import numpy as np

with tarfile.open("{file}") as tar:
    description = next(member for member in tar if member.name.endswith(".json"))
    about = json.load(tar.extractfile(description))
    layer = about["layers"]["{layer}"]
    array = description.name.removesuffix("json") + layer["member"]
    stored = np.load(BytesIO(tar.extractfile(array).read()))
values = stored.astype(np.float32) * np.array(layer["map_scale"], np.float32)[..., None, None]
```

Hugging Face datasets, streaming; it begins with the first tar that has a sample:

```python
from glob import glob

import numpy as np
from datasets import load_dataset

tars = [tar for tar in sorted(glob("tars/*.tar")) if tar >= "{file}"]
samples = load_dataset("webdataset", data_files=tars, split="train", streaming=True)
sample = next(iter(samples))
layer = sample["json"]["layers"]["{layer}"]
scale = np.array(layer["map_scale"], np.float32)[..., None, None]
values = np.array(sample[layer["member"]], np.float32) * scale
```
'''


def write_tar(
    file: HashedFile,
    images: Iterable[ImageAndMaps],
    map_dtype: MapDtype,
    metadata: Mapping[str, str],
) -> int:
    """Write one sample per image, in the given order; returns the number of samples.

    Holds one image's maps twice. A tar has no place for the `metadata` of the run.

    Raises:
        ValueError: when an image's maps are not a full grid of variants x targets x methods in
            each layer.
    """
    import webdataset  # imports torch, which readers do without

    samples = 0
    with webdataset.TarWriter(file, mtime=0, compress=False) as writer:
        for image, records in images:
            if records:
                writer.write(_sample(image, records, map_dtype))
                samples += 1
    return samples


def read_images(path: str, image_ids: Sequence[str], signed: bool) -> Iterator[list[MapRecord]]:
    """The maps of each image, in the order of the ids, which is that of the samples.

    Holds one sample at a time.
    """
    samples = read_tar(path, signed)
    sample = next(samples, None)
    for image_id in image_ids:
        if sample is not None and sample[0] == image_id:
            yield sample[1]
            sample = next(samples, None)
        else:
            yield []


def read_table(
    path: str, map_dtype: MapDtype, filters: Filters, columns: Sequence[str] | None
) -> pa.Table:
    """The maps that pass, as a table; the tar is read through.

    map_min, map_max and map_sum are those of the stored maps.
    """
    return table_of_maps(read_tar(path, signed=True), map_dtype, filters, columns)


def read_tar(path: str, signed: bool) -> Iterator[tuple[str, list[MapRecord]]]:
    """Image id and maps, sample by sample, in the order of `schemas.MAP_ORDER` within an image.

    Equal to what the Parquet file of the same shard holds. Holds one sample at a time. With
    `signed` the ReLU of `relu_on_read` is left to the caller.
    """
    with (
        files.open_read(path) as file,
        understood(path),
        tarfile.open(fileobj=file, mode="r|") as tar,
    ):
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
    """The samples of a tar, by its headers.

    Raises:
        UnreadableFileError: when the tar is torn.
    """
    with (
        files.open_read(path) as file,
        understood(path),
        tarfile.open(fileobj=file, mode="r:") as tar,
    ):
        return len({_split(member.name)[0] for member in tar})


def key_of(image_id: str) -> str:
    """The WebDataset key of an image: no dot, and no two ids with the same key."""
    key = image_id.replace("%", "%25").replace(".", "%2E")
    return f"%5F{key[1:]}" if key.startswith("_") else key  # `__x__/` would be skipped as metadata


def member_of(layer: str) -> str:
    """The layer's member in every sample: `layer4.0.conv1` -> `layer4-0-conv1.npy`."""
    return re.sub(r"[^a-z0-9_]", "-", layer.lower()) + ".npy"  # webdataset ignores case


def misfit(layers: Sequence[str], own_classes: Sequence[str]) -> str:
    """Why the layers, or the variants with classes of their own, do not fit into samples."""
    layer_of: dict[str, str] = {}
    for layer in sorted(set(layers)):
        member = member_of(layer)
        if member in layer_of:
            return (
                f"layers {layer_of[member]!r} and {layer!r} would both be {member} in a WebDataset "
                "sample; ask for one of them, or for --format parquet alone"
            )
        layer_of[member] = layer
    if own_classes:
        return (
            f"variant {own_classes[0]} has classes of its own, which do not fit the arrays of "
            "--format webdataset; use parquet"
        )
    return ""


_Target = tuple[str, int, str]
"""Role, target and class name: what of a map's identity is no axis of its own."""


def _sample(
    image: ImageRecord, records: Sequence[MapRecord], map_dtype: MapDtype
) -> dict[str, Any]:
    variants = sorted({record.key.variant for record in records})
    targets = sorted({_target(record.key) for record in records})
    grid = {(r.key.layer, r.key.variant, _target(r.key), r.key.method): r for r in records}
    if len(grid) != len(records):
        raise ValueError(f"two maps of image {image.image_id} are the same")
    by_layer = {layer: member_of(layer) for layer in sorted({r.key.layer for r in records})}
    if wrong := misfit(tuple(by_layer), ()):
        raise ValueError(f"image {image.image_id}: {wrong}")

    layers = {}
    arrays = {}
    for layer, member in by_layer.items():
        methods = sorted({record.key.method for record in records if record.key.layer == layer})
        cells = list(product(variants, targets, methods))
        if missing := [cell for cell in cells if (layer, *cell) not in grid]:
            raise ValueError(
                f"image {image.image_id}, layer {layer}: no map of (variant, target, method) "
                f"{missing[0]} and {len(missing) - 1} more; a WebDataset sample holds all of them"
            )
        maps = [grid[layer, *cell].values for cell in cells]
        encoded = list(encode_all(maps, map_dtype))
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

    first = {(r.key.variant, _target(r.key)): r for r in reversed(records)}
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
        "relu_on_read": {
            r.key.method: r.relu_on_read for r in sorted(records, key=lambda r: r.key.method)
        },
        "layers": layers,
    }
    text = json.dumps(description, ensure_ascii=False, separators=(",", ":"))
    return {"__key__": key_of(image.image_id), "json": text, **arrays}


def _records(members: dict[str, bytes], signed: bool) -> tuple[str, list[MapRecord]]:
    description = files.parsed_json(members["json"])
    relu = description["relu_on_read"]
    records = []
    for layer, facts in description["layers"].items():
        array = np.load(BytesIO(members[facts["member"]]))
        axes = (description["variants"], description["targets"], facts["methods"])
        for v, t, m in np.ndindex(*map(len, axes)):
            target, method = description["targets"][t], facts["methods"][m]
            records.append(
                MapRecord(
                    key=MapKey(
                        variant=description["variants"][v],
                        method=method,
                        layer=layer,
                        role=target["role"],
                        target=target["target"],
                        class_name=target["class_name"],
                    ),
                    target_name=target["target_name"],
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
    return description["image_id"], sorted(records, key=lambda record: record.key)


def _split(name: str) -> tuple[str, str]:
    """Key and suffix of a member; the key has no dot."""
    key, _, suffix = name.partition(".")
    return key, suffix


def _target(key: MapKey) -> _Target:
    return key.role, key.target, key.class_name


def _float32(value: float) -> float:
    """As the Parquet column holds it, so that both formats read back the same."""
    return float(np.float32(value))


def _scales(encoded: Sequence[StoredMap], shape: tuple[int, int, int]) -> list[list[list[float]]]:
    scales: list[list[list[float]]] = np.reshape([cell.scale for cell in encoded], shape).tolist()
    return scales
