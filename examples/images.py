"""Ask a running server about pictures that are drawn here (needs `pip install openai`).

remuda serve & python examples/images.py [BASE_URL]
"""

from __future__ import annotations

import base64
import io
import sys

from openai import OpenAI
from PIL import Image, ImageDraw


def drawing() -> Image.Image:
    """A red circle in the top left corner, a blue square in the bottom right one."""
    image = Image.new("RGB", (112, 112), "white")
    pen = ImageDraw.Draw(image)
    pen.ellipse((5, 5, 33, 33), fill=(220, 30, 40))
    pen.rectangle((80, 80, 106, 106), fill=(35, 70, 220))
    return image


def data_url(image: Image.Image) -> str:
    png = io.BytesIO()
    image.save(png, "PNG")
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()


def main(base_url: str = "http://localhost:8000") -> None:
    client = OpenAI(base_url=f"{base_url}/v1", api_key="none")
    picture = {"type": "image_url", "image_url": {"url": data_url(drawing())}}
    for question in ("What is where in the image?", "What color is the circle?"):
        messages = [{"role": "user", "content": [picture, {"type": "text", "text": question}]}]
        model = client.models.list().data[0].id
        answer = client.chat.completions.create(model=model, messages=messages, temperature=0)
        print(f"> {question}\n{answer.choices[0].message.content}")


if __name__ == "__main__":
    main(*sys.argv[1:])
