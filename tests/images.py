"""Real images as bytes, of every kind the service has to tell apart, and things that are no images.

Everything is made by Pillow or by hand and is the same in each run. `IMAGES` and `NOT_IMAGES` name one of each.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

from PIL import ExifTags, Image, ImageCms

SECRET = b"52.5163N 13.3777E"
"""Where the photograph was taken: it stands in every piece of metadata that `metadata=True` writes."""

_INVERSE_OF_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
_QUADRANTS = ((220, 40, 40), (40, 200, 60), (50, 80, 220), (230, 220, 60))
"""Colours of `quadrants`: north-west, north-east, south-west, south-east."""


def picture(width: int = 320, height: int = 240, *, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Something like a photograph: soft shapes, a little grain. Alpha, where `mode` has it, falls from the centre."""
    chance = random.Random(seed)
    shapes = Image.frombytes("RGB", (8, 6), chance.randbytes(8 * 6 * 3)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = Image.frombytes("L", (width, height), chance.randbytes(width * height)).convert("RGB")
    image = Image.blend(shapes, grain, 0.06)
    if "A" in mode:
        image.putalpha(Image.radial_gradient("L").resize((width, height)))
    return image.convert(mode)


def quadrants(width: int = 320, height: int = 240) -> Image.Image:
    """Four plain colours, so that turning and mirroring show."""
    image = Image.new("RGB", (width, height))
    for index, colour in enumerate(_QUADRANTS):
        x, y = index % 2 * width // 2, index // 2 * height // 2
        image.paste(colour, (x, y, width if index % 2 else width // 2, height if index // 2 else height // 2))
    return image


def icc_profile() -> bytes:
    """A small sRGB profile."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif(*, orientation: int = 1, metadata: bool = True) -> bytes:
    """An EXIF block as Pillow's `exif=` takes it; with `metadata` it says where and by whom."""
    block = Image.Exif()
    block[ExifTags.Base.Orientation] = orientation
    if metadata:
        block[ExifTags.Base.Artist] = SECRET.decode()
        gps = block.get_ifd(ExifTags.IFD.GPSInfo)
        gps[ExifTags.GPS.GPSLatitudeRef] = "N"
        gps[ExifTags.GPS.GPSLatitude] = (52.0, 30.0, 58.68)
        gps[ExifTags.GPS.GPSMapDatum] = SECRET.decode()
    return block.tobytes()


def xmp() -> bytes:
    """An XMP packet that says where."""
    return (
        b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description xmlns:exif='
        b'"http://ns.adobe.com/exif/1.0/" exif:GPSLatitude="' + SECRET + b'"/></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )


def _iptc_segment() -> bytes:
    caption = b"\x1c\x02\x78" + struct.pack(">H", len(SECRET)) + SECRET
    caption += b"\x00" * (len(caption) % 2)
    payload = b"Photoshop 3.0\x00" + b"8BIM\x04\x04\x00\x00" + struct.pack(">I", len(caption)) + caption
    return b"\xff\xed" + struct.pack(">H", len(payload) + 2) + payload


def _save(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def _about(*, orientation: int, metadata: bool, icc: bool) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if orientation != 1 or metadata:
        options["exif"] = exif(orientation=orientation, metadata=metadata)
    if metadata:
        options["xmp"] = xmp()
    if icc:
        options["icc_profile"] = icc_profile()
    return options


def jpeg(
    width: int = 320,
    height: int = 240,
    *,
    seed: int = 0,
    mode: str = "RGB",
    quality: int = 85,
    orientation: int = 1,
    metadata: bool = False,
    icc: bool = False,
    progressive: bool = False,
    restart_rows: int = 0,
) -> bytes:
    """A photograph. `mode` is RGB, L or CMYK; `metadata` adds EXIF with GPS, XMP, IPTC and a comment."""
    options = _about(orientation=orientation, metadata=metadata, icc=icc)
    if metadata:
        options |= {"comment": SECRET, "extra": _iptc_segment()}
    return _save(
        picture(width, height, seed=seed, mode=mode),
        "JPEG",
        quality=quality,
        progressive=progressive,
        restart_marker_rows=restart_rows,
        **options,
    )


def oriented(orientation: int, *, width: int = 320, height: int = 240, image_format: str = "JPEG") -> bytes:
    """`quadrants(width, height)` for whoever applies the orientation, stored turned as a phone does."""
    image = quadrants(width, height)
    if orientation != 1:
        image = image.transpose(_INVERSE_OF_ORIENTATION[orientation])
    return _save(image, image_format, quality=95, exif=exif(orientation=orientation, metadata=False))


def mpo(width: int = 320, height: int = 240) -> bytes:
    """What phones with two lenses save: a JPEG with a second one behind its end; both say where."""
    options = _about(orientation=1, metadata=True, icc=False)
    return _save(
        picture(width, height), "MPO", save_all=True, append_images=[picture(width, height, seed=1)], **options
    )


def with_film(image: bytes) -> bytes:
    """The image, and behind its end a film with its place in it, as motion photographs have."""
    return image + struct.pack(">I", 24) + b"ftypmp42\x00\x00\x00\x00isommp42" + b"\xa9xyz" + SECRET + bytes(2000)


def png(
    width: int = 160,
    height: int = 120,
    *,
    seed: int = 0,
    mode: str = "RGB",
    orientation: int = 1,
    metadata: bool = False,
    icc: bool = False,
) -> bytes:
    """A PNG of `mode` RGB, RGBA, L, LA, 1 or I;16; `metadata` adds eXIf, XMP, text and time."""
    image = picture(width, height, seed=seed, mode="I" if mode == "I;16" else mode)
    if mode == "I;16":
        image = image.point(lambda level: level * 257).convert("I;16")
    options = _about(orientation=orientation, metadata=metadata, icc=icc)
    options.pop("xmp", None)
    encoded = _save(image, "PNG", **options)
    if metadata:
        head, end = encoded[:33], encoded[-12:]
        texts = png_chunk(b"tEXt", b"Location\0" + SECRET) + png_chunk(b"zTXt", b"Place\0\0" + zlib.compress(SECRET))
        texts += png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp())
        encoded = head + texts + encoded[33:-12] + png_chunk(b"tIME", b"\x07\xea\x0b\x14\x0a\x00\x00") + end
    return encoded


def palette_png(width: int = 160, height: int = 120) -> bytes:
    """64 colours, one of them transparent."""
    return _save(picture(width, height).quantize(64), "PNG", transparency=3)


def png_chunk(name: bytes, data: bytes) -> bytes:
    """One PNG chunk: length, name, data, CRC."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_from_rows(width: int, height: int, rows: bytes, *, bits: int, colour_type: int, interlaced: bool) -> bytes:
    """A PNG around filtered rows, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, interlaced)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def interlaced_png(width: int = 160, height: int = 120) -> bytes:
    """RGB in Adam7's seven passes."""
    image = picture(width, height)
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = bytearray()
    for left, top, across, down in passes:
        size = (-(-(width - left) // across), -(-(height - top) // down))
        if min(size) < 1:
            continue
        affine = (across, 0, left + (1 - across) / 2, 0, down, top + (1 - down) / 2)
        raw = image.transform(size, Image.Transform.AFFINE, affine, Image.Resampling.NEAREST).tobytes()
        stride = size[0] * 3
        rows += b"".join(b"\x00" + raw[at : at + stride] for at in range(0, len(raw), stride))
    return png_from_rows(width, height, bytes(rows), bits=8, colour_type=2, interlaced=True)


def rgb16_png(width: int = 160, height: int = 120) -> bytes:
    """RGB with 16 bits a sample."""
    raw = picture(width, height).tobytes()
    wide = bytes(byte for level in raw for byte in (level, level))
    stride = width * 6
    rows = b"".join(b"\x00" + wide[at : at + stride] for at in range(0, len(wide), stride))
    return png_from_rows(width, height, rows, bits=16, colour_type=2, interlaced=False)


def _frames(width: int, height: int, count: int, mode: str) -> list[Image.Image]:
    return [picture(width, height, seed=seed, mode=mode) for seed in range(count)]


def _animation(image_format: str, frames: Sequence[Image.Image], **options: Any) -> bytes:
    return _save(frames[0], image_format, save_all=True, append_images=frames[1:], duration=80, loop=0, **options)


def apng(width: int = 80, height: int = 60, *, frames: int = 3) -> bytes:
    """An animated PNG."""
    return _animation("PNG", _frames(width, height, frames, "RGB"))


def gif(width: int = 80, height: int = 60, *, metadata: bool = False, transparent: bool = False) -> bytes:
    """A still GIF; `metadata` adds a comment and an XMP block."""
    image = picture(width, height).quantize(64)
    encoded = _save(image, "GIF", **({"transparency": 3} if transparent else {}))
    if not metadata:
        return encoded
    comment = b"\x21\xfe" + bytes([len(SECRET)]) + SECRET + b"\x00"
    magic_trailer = b"\x01" + bytes(range(255, -1, -1)) + b"\x00"
    behind_colours = 13 + 3 * 2 ** ((encoded[10] & 7) + 1)
    told = comment + b"\x21\xff\x0bXMP DataXMP" + xmp() + magic_trailer
    return encoded[:behind_colours] + told + encoded[behind_colours:]


def animated_gif(width: int = 80, height: int = 60, *, frames: int = 4) -> bytes:
    """A GIF that moves, for ever."""
    return _animation("GIF", _frames(width, height, frames, "RGB"))


def webp(
    width: int = 160,
    height: int = 120,
    *,
    seed: int = 0,
    mode: str = "RGB",
    lossless: bool = False,
    orientation: int = 1,
    metadata: bool = False,
    icc: bool = False,
) -> bytes:
    """A still WebP; alpha, a profile, metadata or an orientation make it an extended (VP8X) one."""
    options = _about(orientation=orientation, metadata=metadata, icc=icc)
    return _save(picture(width, height, seed=seed, mode=mode), "WEBP", lossless=lossless, method=0, **options)


def animated_webp(width: int = 80, height: int = 60, *, frames: int = 4, metadata: bool = False) -> bytes:
    """A WebP that moves."""
    options = _about(orientation=1, metadata=metadata, icc=False)
    return _animation("WEBP", _frames(width, height, frames, "RGB"), method=0, **options)


def avif(
    width: int = 160,
    height: int = 120,
    *,
    seed: int = 0,
    mode: str = "RGB",
    orientation: int = 1,
    metadata: bool = False,
    icc: bool = False,
) -> bytes:
    """A still AVIF; its orientation is in `irot` and `imir`."""
    options = _about(orientation=orientation, metadata=metadata, icc=icc)
    return _save(picture(width, height, seed=seed, mode=mode), "AVIF", speed=10, **options)


def animated_avif(width: int = 80, height: int = 60, *, frames: int = 3) -> bytes:
    """An AVIF image sequence."""
    return _animation("AVIF", _frames(width, height, frames, "RGB"), speed=10)


def box(kind: bytes, *content: bytes) -> bytes:
    """A box of an ISO media file."""
    return struct.pack(">I", 8 + sum(map(len, content))) + kind + b"".join(content)


def full_box(kind: bytes, *content: bytes, version: int = 0, flags: int = 0) -> bytes:
    """A box with version and flags."""
    return box(kind, bytes([version, 0, 0, flags]), *content)


def spatial_extents(width: int, height: int) -> bytes:
    """AVIF's `ispe` property."""
    return full_box(b"ispe", struct.pack(">II", width, height))


class AvifItem(NamedTuple):
    """An item of `avif_of`: its properties in order, whether its bytes lie in `idat`, and whether it is shown."""

    kind: bytes
    data: bytes
    properties: Sequence[bytes] = ()
    in_idat: bool = False
    hidden: bool = False


def av1_item(picture: bytes, *properties: bytes) -> AvifItem:
    """The AV1 picture of a plain `avif()` as an item, its size and configuration before `properties`."""
    size_at, coding_at, data_at = (picture.index(kind) for kind in (b"ispe", b"av1C", b"mdat"))
    size, coding = picture[size_at - 4 : size_at + 16], picture[coding_at - 4 : coding_at + 8]
    return AvifItem(b"av01", picture[data_at + 4 :], (size, coding, *properties))


def avif_of(items: Sequence[AvifItem], *, references: Sequence[bytes] = (), in_front: bytes = b"") -> bytes:
    """An AVIF of these items, numbered from 1, the first the primary; `in_front` is a box before `meta`."""
    head = box(b"ftyp", b"avif", bytes(4), b"avif", b"mif1", b"miaf") + in_front
    stored, inline = (b"".join(item.data for item in items if item.in_idat is where) for where in (False, True))
    kinds = []
    for number, item in enumerate(items, 1):
        entry = struct.pack(">HH4sx", number, 0, item.kind) + (b"application/rdf+xml\x00" * (item.kind == b"mime"))
        kinds.append(full_box(b"infe", entry, version=2, flags=item.hidden))
    properties = [prop for item in items for prop in item.properties]
    associations, at = b"", 1
    for number, item in enumerate(items, 1):
        # Decoders insist that what they must not overlook is marked so, by the highest bit.
        essential = (0x80 if prop[4:8] in {b"av1C", b"irot", b"imir", b"clap"} else 0 for prop in item.properties)
        associations += struct.pack(">HB", number, len(item.properties))
        associations += bytes(index | mark for index, mark in enumerate(essential, at))
        at += len(item.properties)

    def meta(base: int) -> bytes:
        locations, used = b"", {False: base, True: 0}
        for number, item in enumerate(items, 1):
            locations += struct.pack(">HHHHII", number, item.in_idat, 0, 1, used[item.in_idat], len(item.data))
            used[item.in_idat] += len(item.data)
        return full_box(
            b"meta",
            full_box(b"hdlr", bytes(4) + b"pict" + bytes(13)),
            full_box(b"pitm", b"\x00\x01"),
            full_box(b"iloc", b"\x44\x00", struct.pack(">H", len(items)), locations, version=1),
            full_box(b"iinf", struct.pack(">H", len(items)), *kinds),
            full_box(b"iref", *references) if references else b"",
            box(b"iprp", box(b"ipco", *properties), full_box(b"ipma", struct.pack(">I", len(items)), associations)),
            box(b"idat", inline) if inline else b"",
        )

    return head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", stored)


def grid_avif(width: int = 160, height: int = 120) -> bytes:
    """Two tiles side by side, `width` by `height` together, as cameras store large pictures."""
    tiles = [av1_item(avif(width // 2, height, seed=seed))._replace(hidden=True) for seed in range(2)]
    layout = AvifItem(
        b"grid", struct.pack(">BBBBHH", 0, 0, 0, 1, width, height), (spatial_extents(width, height),), in_idat=True
    )
    return avif_of([layout, *tiles], references=[box(b"dimg", struct.pack(">HHHH", 1, 2, 2, 3))])


IMAGES: dict[str, Callable[[], bytes]] = {
    "jpeg": jpeg,
    "progressive jpeg": lambda: jpeg(progressive=True),
    "jpeg with restarts": lambda: jpeg(restart_rows=1),
    "grey jpeg": lambda: jpeg(mode="L"),
    "cmyk jpeg": lambda: jpeg(mode="CMYK"),
    "jpeg with metadata": lambda: jpeg(metadata=True, icc=True, orientation=6),
    "mpo": mpo,
    "jpeg with film": lambda: with_film(jpeg()),
    **{f"jpeg orientation {tag}": lambda tag=tag: oriented(tag) for tag in range(1, 9)},  # type: ignore[misc]
    "1xN jpeg": lambda: jpeg(1, 300),
    "Nx1 jpeg": lambda: jpeg(300, 1),
    "png": png,
    "rgba png": lambda: png(mode="RGBA"),
    "grey png": lambda: png(mode="L"),
    "grey alpha png": lambda: png(mode="LA"),
    "bilevel png": lambda: png(mode="1"),
    "16-bit grey png": lambda: png(mode="I;16"),
    "16-bit rgb png": rgb16_png,
    "palette png": palette_png,
    "interlaced png": interlaced_png,
    "png with metadata": lambda: png(metadata=True, icc=True, orientation=8),
    "apng": apng,
    "1xN png": lambda: png(1, 300),
    "gif": gif,
    "transparent gif": lambda: gif(transparent=True),
    "gif with metadata": lambda: gif(metadata=True),
    "animated gif": animated_gif,
    "webp": webp,
    "lossless webp": lambda: webp(lossless=True),
    "rgba webp": lambda: webp(mode="RGBA"),
    "lossless rgba webp": lambda: webp(mode="RGBA", lossless=True),
    "webp with metadata": lambda: webp(metadata=True, icc=True, orientation=6),
    "animated webp": animated_webp,
    "avif": avif,
    "rgba avif": lambda: avif(mode="RGBA"),
    "avif with metadata": lambda: avif(metadata=True, icc=True, orientation=6),
    **{f"avif orientation {tag}": lambda tag=tag: oriented(tag, image_format="AVIF") for tag in range(2, 9)},  # type: ignore[misc]
    "animated avif": animated_avif,
    "grid avif": grid_avif,
}
"""How to make one of each, by name; `image` makes it once."""


@cache
def image(name: str) -> bytes:
    """The image of that name in `IMAGES`."""
    return IMAGES[name]()


NOT_IMAGES: dict[str, bytes] = {
    "SVG": b'<?xml version="1.0"?>\n<!-- a drawing --><svg xmlns="http://www.w3.org/2000/svg"><script/></svg>',
    "HTML": b"<!DOCTYPE html><html><body><script>alert(1)</script></body></html>",
    "HEIC": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(100),
    "WAV": b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00" + bytes(24),
    "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n",
    "text": b"Dear photo desk, the picture is attached.\n",
}
"""Files that are not on the allow-list, by a word that `formats.describe` uses of them."""
