"""Scores of images as small PNG pictures, without an imaging library."""

import base64
import struct
import zlib

import numpy as np

# The colours of the page's legend.
NEUTRAL = np.array([247.0, 247.0, 247.0])
POSITIVE = np.array([242.0, 135.0, 20.0])
NEGATIVE = np.array([66.0, 146.0, 230.0])
LARGEST = 512  # pixels a side; a larger picture is thinned, to keep the page small


def encode(pixels: np.ndarray) -> bytes:
    """Give a PNG file of `pixels` `[H, W, 3]` uint8."""
    height, width, _ = pixels.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each row starts with its filter, none
    rows[:, 1:] = pixels.reshape(height, 3 * width)

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9))
        + chunk(b"IEND", b"")
    )


def data_uri(pixels: np.ndarray) -> str:
    """Give `pixels` as an image that lies in the page itself."""
    return "data:image/png;base64," + base64.b64encode(encode(pixels)).decode()


def thin(image: np.ndarray) -> np.ndarray:
    step = -(-max(image.shape[:2]) // LARGEST)
    return image[::step, ::step]


def heat(scores: np.ndarray) -> np.ndarray:
    """Colour `scores` `[H, W]`: orange above zero, blue below, the largest magnitude in full."""
    scores = thin(np.nan_to_num(np.asarray(scores, np.float64)))
    largest = np.abs(scores).max(initial=0.0)
    share = (scores / largest if largest else scores)[:, :, None]
    end = np.where(share > 0, POSITIVE, NEGATIVE)
    return np.rint(NEUTRAL + (end - NEUTRAL) * np.abs(share)).astype(np.uint8)


def picture(image: np.ndarray) -> np.ndarray:
    """Show an input `[H, W]` or `[H, W, C]`, its own range stretched to black and white."""
    image = np.nan_to_num(np.asarray(image, np.float64))
    if image.ndim == 2 or image.shape[-1] not in (3, 4):
        image = image.reshape(*image.shape[:2], -1).mean(axis=-1, keepdims=True)
    image = thin(image[:, :, :3])
    low, high = image.min(initial=0.0), image.max(initial=0.0)
    grey = (image - low) / (high - low) if high > low else np.zeros_like(image)
    return np.rint(255 * np.broadcast_to(grey, (*image.shape[:2], 3))).astype(np.uint8)
