"""The choice of the attention kernel for a device."""

import pytest

from solo.chips import CHIPS
from solo.config import ConfigError, ModelConfig
from solo.model.attention.kernel import GPU_TILE, LANES, LEAST_GPU, TPU_TILE, Kernel, choose_kernel, local_kernel


def model(**settings) -> ModelConfig:
    return ModelConfig.model_validate(
        {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ffn_width": 48, **settings}, strict=False
    )


@pytest.mark.parametrize(
    ("platform", "kind", "expected"),
    [
        ("cpu", "cpu", Kernel("blocks", 64, 64)),
        ("tpu", "TPU v5 lite", Kernel("pallas_tpu", *CHIPS["v5e"].attention_tile)),
        ("tpu", "TPU v4", Kernel("blocks", 64, 64)),
        ("tpu", "TPU v9", Kernel("pallas_tpu", *TPU_TILE)),
        ("gpu", "NVIDIA H100 80GB HBM3", Kernel("pallas_gpu", *CHIPS["h100"].attention_tile)),
        ("gpu", "NVIDIA Z9", Kernel("pallas_gpu", *GPU_TILE)),
    ],
)
def test_auto_is_the_kernel_of_the_platform(platform: str, kind: str, expected: Kernel) -> None:
    assert choose_kernel(model(attention_block=64), platform, kind) == expected


def test_settings_are_followed() -> None:
    for name in ("blocks", "dense"):
        assert choose_kernel(model(attention_implementation=name, attention_block=32), "tpu", "TPU v4") == Kernel(
            name, 32, 32
        )
    ours = model(attention_implementation="pallas", attention_tile=[256, 128])
    assert choose_kernel(ours, "tpu", "TPU v5") == Kernel("pallas_tpu", 256, 128)
    assert local_kernel(ours) == Kernel("pallas_tpu", 256, 128, interpret=True)


@pytest.mark.parametrize("tile", [[192, 256], [256, 64]])
def test_a_tile_that_does_not_fit_the_lanes_is_refused(tile: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"attention_tile.*128"):
        choose_kernel(model(attention_tile=tile), "tpu", "TPU v5 lite")


@pytest.mark.parametrize("tile", [[96, 64], [64, 8]])
def test_a_tile_that_a_gpu_cannot_compute_is_refused(tile: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"attention_tile.*2\^n"):
        choose_kernel(model(attention_tile=tile), "gpu", "NVIDIA H100 80GB HBM3")


def test_tiles_are_no_larger_than_the_row_needs() -> None:
    kernel = Kernel("pallas_tpu", 512, 256)
    assert kernel.fitted(4096, 3072, 1024, 512) == kernel
    assert kernel.fitted(100, 60, 40, 64) == Kernel("pallas_tpu", 128, 128)
    assert kernel.fitted(300, 130, 20, 64) == Kernel("pallas_tpu", 384, 256)


@pytest.mark.parametrize(("dim", "size"), [(128, 64), (256, 64), (288, 32), (512, 32), (2048, 16)])
def test_tiles_of_wide_heads_fit_a_gpus_shared_memory(dim: int, size: int) -> None:
    assert Kernel("pallas_gpu", 64, 64).fitted(4096, 3072, 1024, dim) == Kernel("pallas_gpu", size, size)


def test_every_chip_can_lay_out_its_tile() -> None:
    for chip in CHIPS.values():
        tile = chip.attention_tile or (TPU_TILE if chip.is_tpu else GPU_TILE)
        least = LANES if chip.is_tpu else LEAST_GPU
        assert all(size % least == 0 for size in tile), chip.name
