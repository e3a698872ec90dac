"""How a result looks: in one line, as an overlay, in a notebook."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import math
import os

import numpy as np
import numpy.typing as npt
import PIL.Image

from sprfast.config import Preprocessing
from sprfast.data import figure, images
from sprfast.errors import InputError, SprfastError
from sprfast.method.threshold import Verdict, relative

_Pixels = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """A file that was scored, and how it was read."""

    path: str | os.PathLike[str]
    preprocessing: Preprocessing

    def read(self) -> _Pixels:
        """(H, W, 3) uint8 RGB, oriented.

        Raises:
            InputError: see `images.read_rgb`.
        """
        return images.read_rgb(self.path, self.preprocessing)


class Drawn:
    """What can be seen of an `engine.predictor.Result`."""

    verdict: Verdict
    pred_score: float
    threshold: float | None
    anomaly_map: npt.NDArray[np.float32] | None
    error_map: npt.NDArray[np.float32] | None
    map_threshold: float | None
    milliseconds: float
    reason: str | None
    file: SourceFile | None

    @property
    def relative_score(self) -> float | None:
        """`pred_score` in units of the threshold: 1.0 is the limit; see `threshold.relative`."""
        return relative(self.pred_score, self.threshold)

    def overlay(self, image: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.uint8]:
        """The picture with its anomaly map as heat; see `data.figure.overlay`.

        Args:
            image: (H, W, 3) uint8 RGB, the picture that was scored; None: its file, read again.

        Returns:
            (H, W, 3) uint8.

        Raises:
            InputError: there is no map, or no picture: it was not scored from a file, or the file
                cannot be read any more.
            BackendError: matplotlib or SciPy is not installed.
        """
        if self.anomaly_map is None:
            raise InputError(f"overlay: the image has no anomaly map ({self.reason})")
        if image is None:
            if self.file is None:
                raise InputError("overlay: no file was scored; give the picture as a uint8 array: overlay(image)")
            image = self.file.read()
        return figure.overlay(image, self.anomaly_map, self.map_threshold)

    def save(self, path: str | os.PathLike[str], image: npt.NDArray[np.uint8] | None = None) -> None:
        """Write the overlay as a PNG, with verdict and score in a strip under it.

        Args:
            image: as for `overlay`.

        Raises:
            InputError: as from `overlay`, or the file cannot be written.
            BackendError: matplotlib or SciPy is not installed.
        """
        figure.save_png(path, figure.captioned(self.overlay(image), self._said()))

    def __repr__(self) -> str:
        return f"Result({self._said()[0].replace('  ', ', ')}, {self.milliseconds:.1f} ms)"

    def _repr_html_(self) -> str:
        lines = [self._said()[0], self.reason]
        try:
            picture = io.BytesIO()
            PIL.Image.fromarray(self.overlay()).save(picture, format="PNG")
            data = base64.b64encode(picture.getvalue()).decode()
            shown = f'<img alt="overlay" style="max-width: 480px" src="data:image/png;base64,{data}">'
        except SprfastError as error:
            shown = html.escape(str(error))
        return "<div>" + "<br>".join([*(html.escape(line) for line in lines if line), shown]) + "</div>"

    def _said(self) -> list[str]:
        """Verdict and score in one line, the longest way of saying it first."""
        verdict = self.verdict.value
        score = f"score {self.pred_score:.4g}" if math.isfinite(self.pred_score) else "no score"
        if self.relative_score is None:
            return [f"{verdict}  {score}", verdict]
        ratio = f"{self.relative_score:.2f}"
        short = f"{verdict}  score/threshold {ratio}"  # in ASCII, which the font of a strip has
        return [f"{short}  {score}", short, f"{verdict}  {ratio}", ratio]
