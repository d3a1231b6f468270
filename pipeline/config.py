"""What a run is asked to do: the settings of `backlight generate`, from flags, YAML or code.

A `RunConfig` is the question. `pipeline.planning` answers it with a `pipeline.plan.Plan`, in which
every preset is spelled out and every name is the object that it stands for.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from pipeline.errors import SettingsError
from pipeline.model.classes import CLASS_MAPS
from pipeline.preprocess import CHANNEL_ORDERS, INTERPOLATIONS, PREPROCESSES
from pipeline.regions import REGIONS
from pipeline.roles import ROLES, parse_role
from pipeline.settings import (
    DATA,
    MAPS,
    MODEL,
    OUTPUT,
    SCORES,
    WHERE,
    declared_settings,
    setting,
)
from pipeline.sources import SOURCES
from pipeline.sources.columns import Columns
from pipeline.sources.hf_objects import BOX_FORMATS
from pipeline.store.encoding import MAP_DTYPES
from pipeline.store.formats import FORMATS
from transforms.layout import LayoutError, parse_layouts
from transforms.names import unknown_name
from transforms.output_gradient import OUTPUT_GRADIENTS
from transforms.upsampling import UPSAMPLINGS

THE_WEIGHTS_OWN = "the weights' own, else"

DEVICES = ("auto", "cpu", "cuda")
KEEP = ("all", "none", "sample:N")


@dataclass(frozen=True)
class RunConfig:
    """The settings of `backlight generate`. The defaults are the paper's where it has one.

    `None` means that planning chooses, by the source, the model or the size of the set.

    Raises:
        SettingsError: a setting is wrong by itself, whatever the dataset and the model.
    """

    source: str = setting(DATA, "format of the dataset", choices=lambda: SOURCES)
    root: str = setting(
        DATA,
        "folder of the dataset: a path or a URL; of a webdataset also a pattern",
        metavar="FOLDER",
        is_path=True,
    )
    model: str = setting(
        MODEL,
        "name of a torchvision classifier, timm:NAME, or module:factory for your own",
        metavar="NAME",
    )
    split: str | None = setting(
        DATA, "part of the dataset, where the format has parts", None, metavar="NAME"
    )
    annotations: str | None = setting(
        DATA,
        "annotation file, as given or relative to the root; a table is CSV, JSON or Parquet with "
        "the columns path, label, id, x0, y0, x1, y1, in JSON and Parquet also labels and boxes",
        None,
        metavar="FILE",
        is_path=True,
    )
    image_column: str | None = setting(
        DATA,
        "column of the photos in a table or hf dataset, or their suffix in a webdataset",
        None,
        metavar="NAME",
        otherwise="found by its name, type or features",
    )
    label_column: str | None = setting(
        DATA,
        "column of the labels, likewise; in a webdataset also a key of json; or none",
        None,
        metavar="NAME",
        otherwise="found likewise",
    )
    box_format: str | None = setting(
        DATA,
        "what the four numbers of a box are in the objects of an hf dataset",
        None,
        choices=lambda: BOX_FORMATS,
        otherwise="what the boxes of the set show, which is printed",
    )
    follow_links: bool = setting(
        DATA, "read photos also behind links that lead out of the root", False
    )
    limit: int | None = setting(DATA, "take only the first N images", None, metavar="N")
    weights: str | None = setting(
        MODEL,
        "file of a state dict, name of a torchvision enum's value or of timm's weights, or "
        "random:SEED",
        None,
        metavar="WEIGHTS",
        is_path=True,
    )
    weights_key: str | None = setting(
        MODEL,
        "which of several state dicts in the weights file, by its key, such as model_ema",
        None,
        metavar="KEY",
        otherwise="the only one that fits; of a model and its moving average, the latter",
    )
    num_classes: int | None = setting(
        MODEL, "number of classes of the model's head, if it is not the default", None, metavar="N"
    )
    fully_convolutional: bool = setting(
        MODEL,
        "classify every location of a photo of any shape; for torchvision's vgg and resnet",
        False,
    )
    output_gradient: str = setting(
        MODEL,
        "what enters the output of a fully convolutional model on the way back: 1 at every "
        "location (onehot_sum), or the softmax over the locations (pointing)",
        "onehot_sum",
        choices=lambda: OUTPUT_GRADIENTS,
    )
    class_index: str | None = setting(
        MODEL,
        f"names of the model's classes: {', '.join(CLASS_MAPS)}, or a file",
        None,
        metavar="NAMES",
        is_path=True,
        otherwise="ImageNet's for 1000 classes",
    )
    class_map: str | None = setting(
        MODEL,
        f"which classes of the model stand for a class of the dataset: {', '.join(CLASS_MAPS)}, "
        "none, or a JSON file",
        None,
        metavar="MAP",
        is_path=True,
        otherwise="the source's own, for ImageNet's classes",
    )
    preprocess: str | None = setting(
        MODEL,
        "how a photo becomes the network's input",
        None,
        choices=lambda: PREPROCESSES,
        otherwise="shortest_side for voc, coco and cls_loc, else center_crop; stretch where the "
        "model takes one size only",
    )
    input_size: int | None = setting(
        MODEL,
        "pixels of the network's input",
        None,
        metavar="PIXELS",
        otherwise=f"{THE_WEIGHTS_OWN} 224",
    )
    resize_size: int | None = setting(
        MODEL,
        "pixels of a photo's shortest side before center_crop cuts it",
        None,
        metavar="PIXELS",
        otherwise=f"{THE_WEIGHTS_OWN} 256 for an input of 224, and in proportion",
    )
    interpolation: str | None = setting(
        MODEL,
        "how photos are resized",
        None,
        choices=lambda: INTERPOLATIONS,
        otherwise=f"{THE_WEIGHTS_OWN} bilinear",
    )
    channel_order: str = setting(
        MODEL, "order of the input's channels", "rgb", choices=lambda: CHANNEL_ORDERS
    )
    mean: tuple[float, ...] | None = setting(
        MODEL,
        "mean of the normalisation, three numbers in the channel order",
        None,
        metavar="R,G,B",
        otherwise=f"{THE_WEIGHTS_OWN} ImageNet's",
    )
    std: tuple[float, ...] | None = setting(
        MODEL,
        "standard deviation of the normalisation, likewise",
        None,
        metavar="R,G,B",
        otherwise=f"{THE_WEIGHTS_OWN} ImageNet's",
    )
    layers: tuple[str, ...] = setting(
        MAPS,
        "names of modules, input for the image, or the presets stages, last, convs",
        ("stages",),
        metavar="NAMES",
    )
    layout: tuple[str, ...] = setting(
        MAPS,
        "how a layer lays out its output, where that is not found from the network: LAYER=LAYOUT, "
        "such as channels_first, channels_last, tokens(patch=16,leading=1)",
        (),
        metavar="LAYER=LAYOUT",
        otherwise="found from the network",
    )
    methods: tuple[str, ...] = setting(
        MAPS,
        "names that `backlight methods` lists, or any rule:extract:aggregate",
        ("gradient", "linear_approx", "normgrad", "grad_cam"),
        metavar="NAMES",
    )
    roles: tuple[str, ...] = setting(
        MAPS,
        f"classes to explain: {', '.join(ROLES)}, such as top5 and class:207",
        ("label", "top", "least"),
        metavar="ROLES",
    )
    variants: tuple[str, ...] = setting(
        MAPS,
        "models to explain: base, meta, meta(lr=X), cascade, cascade(LAYER)",
        ("base",),
        metavar="VARIANTS",
    )
    evaluate: tuple[str, ...] = setting(
        SCORES,
        "score the maps while they are in memory, by these metrics of `backlight metrics`",
        (),
        metavar="METRICS",
        otherwise="no scores",
    )
    upsample: tuple[str, ...] = setting(
        SCORES,
        "how maps are brought to pixels before they are scored",
        ("bilinear",),
        choices=lambda: UPSAMPLINGS,
    )
    combine: tuple[str, ...] = setting(
        SCORES,
        "layer combinations to score too: sum or product, a colon, and uniform, linear, spread, "
        "sensitivity (the last two for backlight evaluate alone) or a JSON file of weights",
        (),
        metavar="COMBINATIONS",
        is_path=True,
        otherwise="none",
    )
    region: tuple[str, ...] = setting(
        SCORES,
        "which pixels are an object's, for the metrics that compare maps with them: those of its "
        "box, or of its mask where it has one",
        (),
        choices=lambda: REGIONS,
        otherwise="masks for coco, else boxes",
    )
    keep: str = setting(
        SCORES,
        "which maps to keep, with --evaluate: all, none, or sample:N for the maps of N images",
        "all",
        metavar="|".join(KEEP),
    )
    format: tuple[str, ...] = setting(
        OUTPUT, "file formats of the maps", ("parquet",), choices=lambda: FORMATS
    )
    map_dtype: str = setting(
        OUTPUT, "number format of the maps", "float16", choices=lambda: MAP_DTYPES
    )
    shard_size: int | None = setting(
        OUTPUT,
        "images per shard",
        None,
        metavar="N",
        otherwise="16 to 128, by the size of the set",
    )
    batch_size: int = setting(WHERE, "images per batch", 8, metavar="N")
    device: str = setting(
        WHERE,
        "device that computes; auto takes a GPU if there is one",
        "auto",
        choices=lambda: DEVICES,
    )

    def __post_init__(self) -> None:
        """Bring paths home, and check what needs neither the dataset nor the model."""
        for declared in declared_settings(RunConfig):
            value = declared.at_home(getattr(self, declared.name))
            object.__setattr__(self, declared.name, value)
            declared.check(value)
        for role in self.roles:
            parse_role(role)
        if parse_keep(self.keep) is not None and not self.evaluate:
            raise SettingsError(
                f"--keep {self.keep} without --evaluate METRICS would leave nothing of the maps"
            )
        try:
            parse_layouts(self.layout)
        except LayoutError as error:
            raise SettingsError(str(error)) from error
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and (len(values) != 3 or not all(map(math.isfinite, values))):
                raise SettingsError(f"{name} takes three finite numbers, not {values}")
        if max(self.mean or (0,)) > 1 or max(self.std or (0,)) > 10:
            raise SettingsError(
                f"mean {self.mean} and std {self.std} are of pixels from 0 to 255, and pixels are "
                "from 0 to 1 here; divide both by 255"
            )
        if self.std is not None and min(self.std) <= 0:
            raise SettingsError(f"std must be positive, not {self.std}")
        if self.input_size and self.resize_size and self.resize_size < self.input_size:
            raise SettingsError(
                f"resize_size {self.resize_size} must be at least the input_size {self.input_size}"
            )

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """From settings by name, as flags or YAML have them; a list may be text with commas.

        Raises:
            SettingsError: a setting is unknown, missing, or of the wrong type.
        """
        known = {declared.name: declared for declared in declared_settings(cls)}
        for name in settings:
            if name not in known:
                raise SettingsError(unknown_name("setting", name, known))
        given = {name: value for name, value in settings.items() if value is not None}
        missing = [d.name for d in known.values() if d.is_required and d.name not in given]
        if missing:
            raise SettingsError(f"missing settings: {', '.join(missing)}")
        return cls(**{name: known[name].typed(value) for name, value in given.items()})

    @property
    def columns(self) -> Columns:
        """The columns that the settings name."""
        return Columns(self.image_column, self.label_column, self.box_format)

    def to_settings(self) -> dict[str, Any]:
        """Plain lists, numbers and text: the inverse of `from_settings`."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a YAML file.

    Settings that are text are taken as they are written: the layer `0.10` is no number, the split
    `no` is no flag, and `007` stays.

    Raises:
        SettingsError: the file is missing, or not a mapping of settings, or has one of them twice.
    """
    try:
        text = path.read_text("utf-8")
        settings, written = yaml.safe_load(text), yaml.load(text, yaml.BaseLoader)
    except OSError as error:
        raise SettingsError(f"cannot read the config file {path}: {error.strerror}") from error
    except RecursionError:
        raise SettingsError(f"the config file {path} is nested too deep") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"the config file {path} is not YAML: {error}") from error
    if not isinstance(settings, dict):
        raise SettingsError(f"the config file {path} must map settings to values")
    names = [_setting_name(key.value) for key, _ in getattr(yaml.compose(text), "value", ())]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"the config file {path} has {name} twice; leave one of them out")
    texts = {each.name for each in declared_settings(RunConfig) if each.item_type is str}
    return {
        _setting_name(name): written.get(name, value)
        if _setting_name(name) in texts and value is not None
        else value
        for name, value in settings.items()
    }


def _setting_name(key: object) -> str:
    return str(key).replace("-", "_")


def parse_keep(keep: str) -> int | None:
    """The number of images whose maps are kept; None: of all.

    Raises:
        SettingsError: none of the ways to say it.
    """
    if keep in ("all", "none"):
        return None if keep == "all" else 0
    if match := re.fullmatch(r"sample:([1-9]\d*)", keep):
        return int(match[1])
    raise SettingsError(unknown_name("keep", keep, KEEP))
