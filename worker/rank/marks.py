"""What a file says of itself: the request that made it, and that a model drew it."""

import json
from dataclasses import dataclass
from typing import Any

from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo

from jobs.request import Item, JobRequest, alone
from jobs.settings import Settings

# IPTC's word for what a trained model made.
SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about=""'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    "<Iptc4xmpExt:DigitalSourceType>{}</Iptc4xmpExt:DigitalSourceType>"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)


@dataclass(frozen=True)
class Marks:
    """parameters: the request as JSON in ASCII, which every format takes as it is. source: a
    digital source type of IPTC's. None: not said. The same marks are the same bytes."""

    parameters: str | None = None
    source: str | None = None

    def picture(self, format: str) -> dict[str, Any]:
        """What Pillow's save() takes for a "png" or a "webp"."""
        xmp = None if self.source is None else _XMP.format(self.source)
        if format == "png":
            texts = PngInfo()
            for keyword, text in (("parameters", self.parameters), ("XML:com.adobe.xmp", xmp)):
                if text is not None:
                    texts.add_itxt(keyword, text)
            return {"pnginfo": texts}
        options: dict[str, Any] = {} if xmp is None else {"xmp": xmp.encode()}
        if self.parameters is not None:
            exif = Image.Exif()
            comment = b"ASCII\0\0\0" + self.parameters.encode("ascii")
            exif.get_ifd(IFD.Exif)[Base.UserComment] = comment
            options["exif"] = exif
        return options

    def video(self) -> str:
        """A metadata file of ffmpeg's; empty without marks."""
        tags = {"comment": self.parameters, "digital_source_type": self.source}
        lines = [f"{name}={_escaped(text)}\n" for name, text in tags.items() if text is not None]
        return "".join([";FFMETADATA1\n", *lines]) if lines else ""


UNMARKED = Marks()


def marks(settings: Settings, request: JobRequest, item: Item) -> Marks:
    """What the settings have a file say."""
    parameters = json.dumps(alone(request, item)) if settings.embed_parameters else None
    return Marks(parameters, SOURCE if settings.embed_provenance else None)


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "\\=;#\n" else letter for letter in text)
