"""The masks and positions of exported repositories, which stand alone, are those of training."""

import itertools

import numpy as np
import pytest

from solo.data.rows.document import PATCH
from solo.data.rows.reading_order import join_documents, positions, visible
from tests.interop.twins import document, make_twins

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from solo.interop.remote import modeling_solo  # noqa: E402
from solo.interop.remote.spans_solo import grid_positions  # noqa: E402

# Images first, last, side by side, of one row and of one column.
DOCUMENTS = ((3, (2, 3), 2, (1, 2), 4), ((2, 2), 1, (3, 1)), (1, (1, 1), 2), (5,))
DELIMITERS = [
    dict(zip(("begin_token", "end_token", "row_token"), names, strict=True))
    for names in itertools.product(("<vision>", None), ("</vision>", None), ("<vrow_sep>", None))
]


def trained_mask(twins, example) -> np.ndarray:
    """bool [N, N] in reading order: who sees whom, from the intervals of training."""
    order = join_documents([(example, 0)])
    a0, a1, a2, a3 = visible(order, twins.config.image, twins.config.sequence).T[..., None]
    is_patch = order.is_patch
    number = np.where(is_patch, np.cumsum(is_patch), np.cumsum(~is_patch)) - 1
    return np.where(is_patch, (a0 <= number) & (number < a1), (a2 <= number) & (number < a3))


def exported_mask(twins, example) -> np.ndarray:
    """bool [N, N]: the mask that the exported model hands to its attention function."""
    model = twins.torch_model.model
    ids = twins.inputs(example)["input_ids"]
    embeds = torch.zeros(*ids.shape, twins.config.model.width)
    is_patch = ids == model.config.image_token_id
    mask = model.attention_mask(ids, embeds, is_patch if is_patch.any() else None, None, None)
    return (mask[0, 0] == 0).numpy()


@pytest.mark.parametrize("sliding_window", [None, 1, 2, 5])
@pytest.mark.parametrize("mask", ["causal", "bidirectional", "prefix", "isolated"])
def test_exported_models_see_what_training_saw(mask, sliding_window):
    for names in DELIMITERS:
        for last in (False, True) if names["row_token"] else (False,):
            image = {"mask": mask, "row_token_after_last": last, **names}
            twins = make_twins(modeling_solo, "eager", image=image, sequence={"sliding_window": sliding_window})
            for parts in DOCUMENTS:
                example = document(twins.config, *parts)
                np.testing.assert_array_equal(exported_mask(twins, example), trained_mask(twins, example), str(image))


PLACED = {
    "grid": {"rope_sections": (0, 1, 1)},
    "separate": {"head_parts": [{"axis": axis, "width": 2} for axis in ("time", "row")]},
}


@pytest.mark.parametrize("names", DELIMITERS)
@pytest.mark.parametrize("kind", PLACED)
def test_exported_models_place_what_training_placed(names, kind):
    twins = make_twins(modeling_solo, image=names, model=PLACED[kind], sequence={"positions": kind})
    for parts in DOCUMENTS:
        example = document(twins.config, *parts)
        inputs = twins.inputs(example)
        found = grid_positions(twins.torch_model.config, inputs["input_ids"], None, inputs.get("patches_grid"))
        expected = positions(join_documents([(example, 0)]), twins.config.sequence)
        assert (example.tokens == PATCH).sum() == len(example.patch_grid)
        np.testing.assert_array_equal(found[:, 0].T.numpy(), expected)
