"""A folder of images as examples, each read when it is asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxplain.types import JaxplainError

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class ImageFolder:
    """The images below a folder, as a source for `jaxplain.run`.

    An example holds `x` `[H, W, C]` float32, `(pixels * scale - mean) / std`, and notes: `file`,
    its path below the folder, and `label`, the name of the sub-folder that it lies in, None where
    it lies in no sub-folder. An image that cannot be read raises when it is asked for, which a run
    records as that example's failure.

    Letters: `H` height, `W` width, `C` channels.

    Attributes:
        files: paths below the folder, sorted.
        labels: a class for each, or None.
        classes: the sub-folders' names, sorted.

    Example:
        >>> import jaxplain as jxp, pathlib, tempfile
        >>> from PIL import Image
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> (folder / "cats").mkdir()
        >>> Image.new("RGB", (20, 10), "red").save(folder / "cats" / "one.png")
        >>> example = jxp.ImageFolder(folder, size=8)[0]
        >>> example["x"].shape, example["x"][0, 0].tolist(), example["label"]
        ((8, 8, 3), [1.0, 0.0, 0.0], 'cats')
    """

    def __init__(
        self,
        path: str | Path,
        *,
        size: int | tuple[int, int] | None = None,
        resize: int | None = None,
        channels: int = 3,
        scale: float = 1 / 255,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
    ):
        """List the images; none is opened.

        Args:
            path: the folder. Files of other kinds in it, and hidden ones, are no examples.
            size: `(H, W)`, or one number for both: the image is made just large enough to fill it,
                and what sticks out is cut off evenly. None leaves images as they are, which must
                then be of one size.
            resize: the shorter side's length before `size` is cut from the middle, as classifiers
                of ImageNet resize to 256 and cut 224. None: just large enough.
            channels: C: 1 for grey, 3 for RGB, 4 for RGB with opacity.
            scale: what pixels, 0 to 255, are multiplied by.
            mean: subtracted then; a number, or one for each channel.
            std: divided by then; a number, or one for each channel.

        Raises:
            JaxplainError: no such folder, no image in it, or a setting that does not fit.
        """
        self.path = Path(path)
        if not self.path.is_dir():
            what = "is no folder" if self.path.exists() else "does not exist"
            raise JaxplainError(f"{self.path} {what}: give a folder of images")
        below = sorted(self.path.rglob("*"))
        inside = [file.relative_to(self.path) for file in below]
        self.files = [
            file
            for file in inside
            if file.suffix.lower() in ENDINGS and not any(p.startswith(".") for p in file.parts)
        ]
        if not self.files:
            raise JaxplainError(
                f"{self.path} has no image in it: files must end in one of {', '.join(ENDINGS)}"
            )
        self.labels = [file.parts[0] if len(file.parts) > 1 else None for file in self.files]
        self.classes = sorted({label for label in self.labels if label is not None})
        self.size = (size, size) if isinstance(size, int) else size
        self.resize, self.channels, self.scale = resize, channels, scale
        if channels not in MODES:
            raise JaxplainError(f"channels must be 1, 3 or 4, not {channels!r}")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise JaxplainError(f"size must be (height, width) in pixels, not {size!r}")
        if resize is not None and (self.size is None or resize < max(self.size)):
            raise JaxplainError(f"resize must be at least size, not {resize!r}")
        self.mean, self.std = (
            self._by_channel("mean", mean),
            self._by_channel("std", std),
        )
        if not (self.std > 0).all():
            raise JaxplainError(f"std must be above 0, not {std!r}")

    def _by_channel(self, name: str, value: float | Sequence[float]) -> np.ndarray:
        given = np.asarray(value, np.float32)
        if given.shape not in ((), (1,), (self.channels,)):
            raise JaxplainError(
                f"{name} must be one number or {self.channels}, one for each channel, not {value!r}"
            )
        return given

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file = self.files[index]
        pixels = self._read(file) * np.float32(self.scale)
        x = ((pixels - self.mean) / self.std).astype(np.float32)
        return {"x": x, "file": file.as_posix(), "label": self.labels[index]}

    def _read(self, file: Path) -> np.ndarray:
        """Pixels `[H, W, C]` float32, 0 to 255."""
        try:
            from PIL import Image, ImageOps, UnidentifiedImageError
        except ImportError:
            raise JaxplainError(
                "images need Pillow to be read: pip install 'jaxplain[images]'"
            ) from None
        try:
            with Image.open(self.path / file) as image:
                if image.mode.startswith(("I", "F")):  # would be clipped to white
                    raise JaxplainError(
                        f"{file} has more than 8 bits a channel ({image.mode}): convert it"
                    )
                image = ImageOps.exif_transpose(image).convert(MODES[self.channels])
        except UnidentifiedImageError:
            raise JaxplainError(f"{file} is no image that can be read") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if isinstance(error, JaxplainError):
                raise
            reason = " ".join(str(error).split())
            raise JaxplainError(f"{file} cannot be read as an image: {reason}") from None
        if self.size is not None:
            image = self._fill(image)
        return np.asarray(image, np.float32).reshape(image.height, image.width, self.channels)

    def _fill(self, image: Any) -> Any:
        """The middle `size` of an image, whose shorter side is first made `resize` long."""
        from PIL import Image, ImageOps

        assert self.size is not None
        height, width = self.size
        if self.resize is None:
            return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        ratio = self.resize / min(image.size)
        across, down = (round(side * ratio) for side in image.size)
        image = image.resize((across, down), Image.Resampling.BILINEAR)
        left, top = round((across - width) / 2), round((down - height) / 2)
        return image.crop((left, top, left + width, top + height))
