"""The one decoder, by the table of pictures."""

from __future__ import annotations

import numpy as np
import pytest
from tests.pictures.refused import REFUSED, Refused
from tests.pictures.table import TAKEN, Pictured

from vtryon.errors import RequestError
from vtryon_services.engine import pictures


def by_name(one: Pictured | Refused) -> str:
    return one.name


def test_there_are_enough_pictures_and_each_has_its_name() -> None:
    names = [one.name for one in (*TAKEN, *REFUSED)]
    assert len(names) == len(set(names)) >= 60
    assert len({one.data for one in (*TAKEN, *REFUSED)}) == len(names)


@pytest.mark.parametrize("case", TAKEN, ids=by_name)
def test_a_picture_is_decoded_to_the_pixels_that_it_is(case: Pictured) -> None:
    found = np.asarray(pictures.decode(case.data)).astype(int)
    assert found.shape == case.pixels.shape
    apart = np.abs(found - case.pixels)
    assert apart.mean() <= case.tolerance
    assert case.tolerance or apart.max() <= 1


@pytest.mark.parametrize("case", REFUSED, ids=by_name)
def test_a_picture_is_refused_by_its_reason(case: Refused) -> None:
    with pytest.raises(RequestError) as caught:
        pictures.decode(case.data)
    assert caught.value.reason is case.reason
