"""The studio gives the edited photograph to the browser: whole, at its own size, marked, and only where something changed."""
import io

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

from aufacs_nb.apps.studio import _geometric_way, _use_photo, studio
from aufacs_nb.pictures import synthetic_info


@pytest.fixture(scope="module")
def parts():
    box = studio({"geometric": _geometric_way}, shown=())
    box.parts.given = []
    box.parts.save.send = lambda content, buffers: box.parts.given.append((content, bytes(buffers[0])))
    return box.parts


def press(parts):
    """As the page does when the button is pressed; what was given, or None, and the message."""
    parts.given.clear()
    parts.save._handle_custom_msg({"kind": "wanted"}, [])
    return (parts.given or [None])[0], parts.message.value


def test_the_whole_photograph_at_its_own_size_and_marked(parts):
    large = np.asarray(Image.fromarray(astronaut()).resize((1400, 1400)))
    _use_photo(parts, "Frau Dr. <é>.png", large)
    parts.sliders[12].value, parts.sliders[26].value = 4, 2.5
    (told, content), message = press(parts)
    saved = np.asarray(Image.open(io.BytesIO(content)))
    assert saved.shape == large.shape and told == {"name": "Frau-Dr-synthetic.png", "type": "image/png"}
    np.testing.assert_array_equal(saved, parts.editor({12: 4, 26: 2.5}))
    at, changed = parts.editor.maps.window, (saved != large).any(-1)
    assert changed[at.y0:at.y1, at.x0:at.x1].sum() == changed.sum() > 1000
    marks = synthetic_info(io.BytesIO(content))
    assert (marks["Targets"], marks["Generator"]) == ("AU12=4, AU26=2.5", "ratio") and "computer" in marks["Synthetic"]
    assert "given to your browser" in message and "aufacs-wrong" not in message


def test_nothing_changed_is_nothing_to_save(parts):
    parts.reset.click()
    assert press(parts)[0] is None and "move a slider" in parts.message.value
