"""The sessions of a model that take images of one size each."""

import numpy as np

from sprfast.backends.model_sessions import SIZES, SessionOfSizes


class Fake:
    """A session that says its size."""

    def __init__(self, height, width):
        self.size, self.closed = (height, width), False

    def maps(self, x, z):
        return self.size, z

    def close(self):
        self.closed = True


def test_a_session_is_opened_once_for_each_size_and_the_last_ones_are_kept():
    opened = []

    def open_size(height, width):
        opened.append(Fake(height, width))
        return opened[-1]

    session, z = SessionOfSizes(open_size), object()
    for width in (16, 17, 16, 18, 19, 16, 20, 16, 17):
        assert session.maps(np.zeros((1, 3, 16, width)), z) == ((16, width), z)
    # 17 had not been used for longest when 20 came
    assert [each.size[1] for each in opened] == [16, 17, 18, 19, 20, 17]
    assert SIZES == 4
    session.close()
    assert [each.closed for each in opened] == [True, False, False, True, True, True]
