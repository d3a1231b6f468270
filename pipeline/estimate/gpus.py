"""GPUs by name: what they compute in float32, without tensor cores, and what they hold."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.errors import SettingsError, check_choice


@dataclass(frozen=True)
class Gpu:
    """One model of GPU.

    Attributes:
        tflops: peak of float32 in TFLOP/s, outside the tensor cores, which only TF32 would use.
        memory: in GB.
        source: where the vendor states both.
    """

    tflops: float
    memory: int
    source: str


GPUS = {
    "T4": Gpu(8.1, 16, "NVIDIA T4 datasheet: single-precision 8.1 TFLOPS"),
    "L4": Gpu(30.3, 24, "NVIDIA L4 datasheet: FP32 30.3 teraFLOPS"),
    "A10G": Gpu(31.2, 24, "NVIDIA A10 datasheet: FP32 31.2 TF (its variant A10G: up to 35)"),
    "V100": Gpu(15.7, 16, "NVIDIA V100 datasheet, SXM2: single-precision 15.7 TFLOPS"),
    "A100-40GB": Gpu(19.5, 40, "NVIDIA A100 datasheet: FP32 19.5 TFLOPS"),
    "A100-80GB": Gpu(19.5, 80, "NVIDIA A100 datasheet: FP32 19.5 TFLOPS"),
    "H100-PCIe": Gpu(51.0, 80, "NVIDIA H100 datasheet, PCIe: FP32 51 teraFLOPS"),
    "H100-SXM": Gpu(67.0, 80, "NVIDIA H100 datasheet, SXM: FP32 67 teraFLOPS"),
    "H200": Gpu(67.0, 141, "NVIDIA H200 datasheet, SXM: FP32 67 TFLOPS"),
}
"""By the name that `--price` takes."""


def parse_prices(prices: Iterable[str]) -> dict[str, float]:
    """`{"T4": 0.35}` for `T4=0.35`.

    Raises:
        SettingsError: the price is not a number.
    """
    found = {}
    for text in prices:
        name, _, price = text.partition("=")
        try:
            found[name] = float(price)
        except ValueError as error:
            raise SettingsError(
                f"--price {text!r}: give the price of an hour, such as T4=1.20"
            ) from error
    return found


def check_prices(prices: Mapping[str, float]) -> None:
    """Check names and amounts.

    Raises:
        SettingsError: no GPU has this name, or the price is negative or not finite.
    """
    for name, price in prices.items():
        check_choice("GPU", name, GPUS)
        if not 0 <= price < math.inf:
            raise SettingsError(f"--price {name}={price:g}: give the price of an hour, at least 0")
