"""Windows: every token scored once, with enough before it."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from camelid.evaluate.windows import windows_of


@given(st.integers(1, 80), st.integers(1, 20), st.data())
def test_every_token_is_scored_once_with_the_overlap_before_it(length: int, context: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, context - 1))
    ids = np.arange(100, 100 + length)
    windows = list(windows_of(ids, context, overlap))
    scored = [i for w in windows for i in w.ids_N[len(w.ids_N) - w.num_scored :].tolist()]
    assert scored == ids[1:].tolist()
    for window in windows:
        assert 1 <= len(window.ids_N) - 1 <= context
        assert len(window.ids_N) == len(ids) or len(window.ids_N) - 1 == context, "a long document fills its windows"
        at_start = window.ids_N[0] == ids[0]
        assert at_start or len(window.ids_N) - window.num_scored > overlap


def test_a_document_that_fits_is_one_window() -> None:
    assert [w.num_scored for w in windows_of(np.arange(9), 8, 4)] == [8]
    assert [(len(w.ids_N), w.num_scored) for w in windows_of(np.arange(15), 8, 4)] == [(9, 8), (9, 4), (9, 2)]
