"""GPUs by name: what they compute in float32, without tensor cores, and what they hold."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
        tflops: peak of float32 outside the tensor cores, which TF32 would need, in TFLOP/s.
        memory: GB.
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
