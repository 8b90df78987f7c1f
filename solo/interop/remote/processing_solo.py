"""Turns texts with images into token ids, with delimiters and placeholders for every image."""

from .versions_solo import OLDEST  # noqa: F401  refuses an older transformers before its names are imported

# isort: split
import itertools
from typing import Any

from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import MultiModalData, ProcessingKwargs

from .image_processing_solo import Grid, SoloMonolithImagesKwargs, overridden

_EVE_IMAGE = -200


class SoloMonolithProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[call-arg]
    """No special tokens are added: the chat template contains them."""

    images_kwargs: SoloMonolithImagesKwargs
    _defaults = {"text_kwargs": {"padding": False, "add_special_tokens": False}}  # noqa: RUF012


class SoloMonolithProcessor(ProcessorMixin):
    """Image processor and tokenizer in one.

    Args:
        image_processor: cuts images into patches.
        tokenizer: has all tokens below.
        chat_template: template of conversations.
        image_token: placeholder of an image in a text, and of a patch in token ids.
        image_begin_token: token before the patches of an image, or None.
        image_end_token: token after the patches of an image, or None.
        image_row_token: token between two rows of patches, or None.
        row_token_after_last: whether the last row is followed by `image_row_token` too.
    """

    valid_processor_kwargs = SoloMonolithProcessorKwargs
    skip_tensor_conversion = ("video_metadata", "text_replacement_offsets", "images")

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        image_token: str = "<image>",
        image_begin_token: str | None = None,
        image_end_token: str | None = None,
        image_row_token: str | None = None,
        row_token_after_last: bool = False,
        **kwargs: Any,
    ):
        self.image_token, self.image_begin_token, self.image_end_token = image_token, image_begin_token, image_end_token
        self.image_row_token, self.row_token_after_last = image_row_token, row_token_after_last
        if image_token not in tokenizer.get_vocab():
            tokenizer.add_tokens([image_token], special_tokens=True)
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        tokens = (image_token, image_begin_token, image_end_token, image_row_token)
        self.image_token_ids = tokenizer.convert_tokens_to_ids([token for token in tokens if token is not None])
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    def __call__(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """Processes texts, in which `image_token` stands for an image, as in transformers.

        Images are a flat list in the order of the placeholders, or a list for each text.

        Returns:
            input_ids and attention_mask; with images also pixel_values and patches_grid, see
            `SoloMonolithImageProcessor`; with return_mm_token_type_ids also a 1 for every token of an image.

        Raises:
            ValueError: videos or audio are given, a text has more or fewer placeholders than images, or an argument
                cannot be honoured.
        """
        if videos is not None or audio is not None:
            raise ValueError(f"this model reads text and images, no {'videos' if audio is None else 'audio'}")
        texts = [text] if isinstance(text, str) else text
        nested = isinstance(images, list | tuple) and all(isinstance(each, list | tuple) for each in images)
        if nested and texts is not None:
            given, wanted = [len(each) for each in images], [each.count(self.image_token) for each in texts]
            if images and given != wanted:
                raise ValueError(f"the texts have {wanted} placeholders {self.image_token}, but {given} images")
            images = [image for each in images for image in each]
        elif isinstance(images, list | tuple) and images and texts is not None:
            counts = [each.count(self.image_token) for each in texts]
            if sum(counts) != len(images):
                raise ValueError(f"the texts have {counts} placeholders {self.image_token}, but {len(images)} images")
        images = None if isinstance(images, list | tuple) and not images else images
        if images is not None and texts is not None:
            kwargs["images_per_text"] = [each.count(self.image_token) for each in texts]
        found = super().__call__(images=images, text=text, **kwargs)
        ids, form = found.get("input_ids"), self.image_processor.form
        if ids is not None and form == "vision_patches" and "vision_patches" in found:
            found["vision_patch_indices"] = self._numbered(ids)
        elif ids is not None and form == "images":
            found["input_ids"] = self._replaced(ids)
        elif ids is not None and form == "position_ids":
            found["mm_token_type_ids"] = self._marked(ids)
        return found

    def _numbered(self, ids: Any) -> Any:
        """Returns the number of each patch in `vision_patches`, and -1 for text, in the form of `ids`."""
        if not isinstance(ids, list):
            is_patch = ids == self.image_token_id
            return is_patch.reshape(-1).cumsum(0).reshape(is_patch.shape) * is_patch - 1
        numbers = itertools.count()
        return [[next(numbers) if token == self.image_token_id else -1 for token in row] for row in ids]

    def _marked(self, ids: Any) -> Any:
        """Returns 1 for a patch and 0 for text, in the form of `ids`."""
        if not isinstance(ids, list):
            return (ids == self.image_token_id) * 1
        return [[int(token == self.image_token_id) for token in row] for row in ids]

    def _replaced(self, ids: Any) -> Any:
        """Returns `ids` with the number that EVE's code replaces by an image."""
        if not isinstance(ids, list):
            is_image = ids == self.image_token_id
            return ids * ~is_image + _EVE_IMAGE * is_image
        return [[_EVE_IMAGE if token == self.image_token_id else token for token in row] for row in ids]

    @property
    def unused_input_names(self) -> list[str]:
        """Inputs that the model does not take."""
        return ["image_grids_of"]

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        """Returns the tokens of one image."""
        return self.image_text(image_inputs["image_grids_of"][image_idx])

    def image_text(self, grid: Grid) -> str:
        """Returns the delimiters, placeholders and row tokens of an image with this grid."""
        if self.image_processor.form == "images":
            return self.image_token
        if self.image_row_token is None:
            inside = self.image_token * self._placeholders(grid)
        else:
            row = self.image_token * grid.columns
            inside = self.image_row_token.join([row] * grid.rows)
            inside += self.image_row_token if self.row_token_after_last else ""
        return f"{self.image_begin_token or ''}{inside}{self.image_end_token or ''}"

    def _placeholders(self, grid: Grid) -> int:
        """Returns the number of patches, including the learned tokens that some models have among them."""
        markers = 1 + grid.rows if self.image_processor.image.get("markers") else 0
        return grid.tiles * grid.rows * grid.columns + markers

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        """Returns the numbers of placeholders and patches of images of these sizes (height, width).

        `kwargs` are those of the image processor.
        """
        if image_sizes is None:
            return MultiModalData()
        config = overridden(self.image_processor.image, kwargs)
        grids = [self.image_processor.grid(width, height, config=config) for height, width in image_sizes]
        patches = [self._placeholders(grid) for grid in grids]
        return MultiModalData(num_image_tokens=patches, num_image_patches=patches)


__all__ = ["SoloMonolithProcessor"]
