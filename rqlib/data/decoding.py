"""How the picture in an image file is meant to be seen: turned as it says itself, on white where it is transparent."""

from PIL import Image, ImageOps

from rqlib.core import limits

TRANSPARENT = "have transparent pixels, whose colors nobody was meant to see; these images are put on white"
"""What is said once of such images."""


def seen(image: Image.Image) -> tuple[Image.Image, bool]:
    """(image, whether it had transparent pixels): mode L if it is gray, else RGB.

    The orientation in the image's EXIF data is applied, and transparent pixels are composited over white.

    Raises:
        ValueError: more pixels than `limits.MOST_PIXELS`; nothing was decoded.
    """
    if image.width * image.height > limits.MOST_PIXELS:
        raise ValueError(f"expected at most {limits.MOST_PIXELS:,} pixels, got {image.width} x {image.height}")
    gray = image.mode in ("1", "L", "LA", "La")
    see_through = _is_transparent(image)
    image = ImageOps.exif_transpose(image)
    if see_through:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if gray else "RGB"), see_through


def _is_transparent(image: Image.Image) -> bool:
    """Whether any pixel is not opaque."""
    return image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema()[0] < 255
