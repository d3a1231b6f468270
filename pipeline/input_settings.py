"""The settings of the network's input: those that were given, else those of its weights."""

from dataclasses import replace

from pipeline.config import RunConfig
from pipeline.errors import SettingsError
from pipeline.preprocess import PREPROCESSES, InputRules
from pipeline.sources import SOURCES


def with_input_settings(config: RunConfig, rules: InputRules) -> RunConfig:
    """The settings with a preprocess, sizes, an interpolation, a mean and a std.

    The mean and the std of the weights are turned into the channel order.

    Raises:
        SettingsError: a size or an interpolation does not go with the preprocess.
    """
    by_source = "shortest_side" if SOURCES[config.source].whole_photos else "center_crop"
    name = config.preprocess or rules.preprocess or by_source
    preprocess = PREPROCESSES[name]
    if config.resize_size is not None and not preprocess.crops:
        crops = ", ".join(name for name, entry in PREPROCESSES.items() if entry.crops)
        raise SettingsError(
            f"resize_size is for preprocess {crops}, and preprocess {name} does not cut photos; "
            "leave it out"
        )
    if config.interpolation not in (None, *preprocess.interpolations):
        raise SettingsError(
            f"preprocess {name} has no interpolation {config.interpolation}; valid: "
            f"{', '.join(preprocess.interpolations)}"
        )
    size = config.input_size or rules.input_size
    resize_size = config.resize_size or max(rules.for_size(size).resize_size, size)
    if resize_size < size:
        raise SettingsError(f"resize_size {resize_size} must be at least the input_size {size}")
    known = rules.interpolation in preprocess.interpolations
    order = -1 if config.channel_order == "bgr" else 1
    return replace(
        config,
        preprocess=name,
        input_size=size,
        resize_size=resize_size if preprocess.crops else None,
        interpolation=config.interpolation
        or (rules.interpolation if known else preprocess.interpolations[0]),
        mean=config.mean or rules.mean[::order],
        std=config.std or rules.std[::order],
    )
