"""The batch: the interface between the data and the model. Numpy arrays from the loader, JAX arrays on the device.

Shape letters, used as suffixes everywhere: B rows, P patch slots, T text slots, S = P + T slots of a row,
Y target slots, D width, F FFN width, H query heads, K key/value heads, C head dim, L layers, V vocabulary.

A row is `[P patches | T text tokens]`, not in reading order. Within each region the documents follow each other, each
in its own order. Slot s < P is patch s; slot P + t is text token t.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

# Row numbers in `patch_grid` that mark a slot as a learned visual token (`ImageConfig.markers`) instead of a patch.
BEGIN_MARKER, ROW_MARKER = -1, -2

# The positions of a text token at time t are t times these numbers, by `SequenceConfig.positions`; None: only t. The
# time after an element is its largest position on the axes that have a 1, plus one.
TEXT_AXES: Mapping[str, tuple[int, int, int] | None] = {"text": None, "grid": (1, 1, 1), "separate": (1, 0, 0)}


class Batch(NamedTuple):
    """B packed rows. Empty slots: patches 0, text the pad id, positions 0, empty intervals, weight 0.

    patches        uint8 [B, P, patch_size^2 * 3]  raw pixels, channel-major (C, y, x); or float32, already normalised
    patch_grid     int32 [B, P, 2]   row and column of the patch in its image or tile; see also BEGIN_MARKER
    text           int32 [B, T]      token ids, with image delimiters and row separators, without placeholders
    positions      int32 [B, S]      rotary position: place in the document's reading order, from 0; [B, S, 3] (time,
                                     row, column) with `SequenceConfig.positions` grid or separate
    attend         int32 [B, S, 4]   (a0, a1, a2, a3): the slot sees patches [a0, a1) and text [a2, a3) of its
                                     row, counted within each region; an empty slot sees nothing (0, 0, 0, 0);
                                     with `SequenceConfig.layer_masks` [B, S, N, 4]: in layers of each of N types
    target_slots   int32 [B, Y]      slot whose output predicts the target (0 if there is none)
    target_ids     int32 [B, Y]      the token that follows that slot in reading order
    target_weights float32 [B, Y]    0 if there is no target
    target_source  int32 [B, Y]      index of the target's source in the stage's mixture
    """

    patches: Any
    patch_grid: Any
    text: Any
    positions: Any
    attend: Any
    target_slots: Any
    target_ids: Any
    target_weights: Any
    target_source: Any
