"""The documents of FiftyOne's format: declarations of fields, labels and ids, as JSON.

A document is what FiftyOne stores in its database, with MongoDB's way to write an id in JSON.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

VERSION = "1.0.0"
"""Of FiftyOne: the oldest that knows these fields. Newer ones migrate what they import."""

PHOTOS = ("original", "link", "copy")
"""Where samples find the photos: where they are, or in the folder as links or as copies."""

Document = dict[str, Any]


def object_id(identity: str) -> Document:
    """An id of a database: the same for the same text."""
    return {"$oid": sha256(identity.encode()).hexdigest()[:24]}


def classification(
    identity: str, label: str, confidence: float | None = None, logit: float | None = None
) -> Document:
    """A class, with how likely it is to the model."""
    return {
        "_id": object_id(identity),
        "_cls": "Classification",
        "tags": [],
        "label": label,
        **({} if confidence is None else {"confidence": confidence, "logit": logit}),
    }


def plain_field(name: str, type_: str, description: str = "") -> Document:
    """The declaration of a field of a type of `fiftyone.core.fields`."""
    return {
        "name": name,
        "ftype": f"fiftyone.core.fields.{type_}",
        "embedded_doc_type": None,
        "subfield": None,
        "fields": [],
        "db_field": {"id": "_id"}.get(name, name),
        "description": description or None,
        "info": None,
        "read_only": False,
    }


def list_field(name: str, type_: str) -> Document:
    """A list of values of a type of `fiftyone.core.fields`."""
    return {**plain_field(name, "ListField"), "subfield": f"fiftyone.core.fields.{type_}"}


def embedded_field(
    name: str, document: str, fields: Sequence[Document], description: str = ""
) -> Document:
    """A document, such as `labels.Heatmap`, with fields of its own."""
    return {
        **plain_field(name, "EmbeddedDocumentField", description),
        "embedded_doc_type": f"fiftyone.core.{document}",
        "fields": list(fields),
    }


def list_of_embedded(name: str, document: str, fields: Sequence[Document]) -> Document:
    """A list of documents."""
    return {
        **list_field(name, "EmbeddedDocumentField"),
        "embedded_doc_type": f"fiftyone.core.{document}",
        "fields": list(fields),
    }


def heatmap_field(name: str, description: str) -> Document:
    """A heatmap in a PNG, with what its darkest and brightest pixel stand for."""
    own = [
        plain_field("map", "ArrayField"),
        plain_field("map_path", "StringField"),
        plain_field("range", "HeatmapRangeField"),
        plain_field("low", "FloatField", "the value of pixel 1"),
        plain_field("high", "FloatField", "the value of pixel 255"),
    ]
    return embedded_field(name, "labels.Heatmap", [*_LABEL, *own], description)


_LABEL = (plain_field("id", "ObjectIdField"), list_field("tags", "StringField"))

_CLASSIFICATION = (
    *_LABEL,
    plain_field("label", "StringField"),
    plain_field("confidence", "FloatField"),
    plain_field("logits", "VectorField"),
    plain_field("logit", "FloatField", "before the softmax"),
)

_DETECTION = (
    *_LABEL,
    plain_field("attributes", "DictField"),
    plain_field("label", "StringField"),
    list_field("bounding_box", "FloatField"),
    plain_field("mask", "ArrayField"),
    plain_field("mask_path", "StringField"),
    plain_field("confidence", "FloatField"),
    plain_field("index", "IntField"),
    plain_field("iscrowd", "BooleanField", "a crowd of objects, not one"),
    plain_field("difficult", "BooleanField", "marked difficult by the dataset"),
)

_METADATA = (
    plain_field("size_bytes", "IntField"),
    plain_field("mime_type", "StringField"),
    plain_field("width", "IntField"),
    plain_field("height", "IntField"),
    plain_field("num_channels", "IntField"),
)

SAMPLE_FIELDS = (
    plain_field("id", "ObjectIdField"),
    plain_field("filepath", "StringField"),
    list_field("tags", "StringField"),
    embedded_field("metadata", "metadata.ImageMetadata", _METADATA),
    plain_field("_media_type", "StringField"),
    plain_field("_rand", "FloatField"),
    plain_field("_dataset_id", "ObjectIdField"),
    {**plain_field("created_at", "DateTimeField"), "read_only": True},
    {**plain_field("last_modified_at", "DateTimeField"), "read_only": True},
    plain_field("image_id", "StringField", "of the run"),
    plain_field("role", "StringField", "why the class was chosen"),
    plain_field("class_name", "StringField", "the dataset class of role label; else empty"),
    plain_field("target", "IntField", "the model's class index that is explained; -1: none"),
    embedded_field(
        "explained", "labels.Classification", _CLASSIFICATION, "the class that the maps explain"
    ),
    embedded_field("top", "labels.Classification", _CLASSIFICATION, "the most likely class"),
    embedded_field(
        "labels",
        "labels.Classifications",
        [list_of_embedded("classifications", "labels.Classification", _CLASSIFICATION)],
        "the classes that are present",
    ),
    embedded_field(
        "ground_truth",
        "labels.Detections",
        [list_of_embedded("detections", "labels.Detection", _DETECTION)],
        "the annotated objects",
    ),
)
"""The fields of every sample; those of maps and scores come after them."""
