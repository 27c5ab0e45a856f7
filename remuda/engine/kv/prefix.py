"""Block hashes: a name for the KV content of a block that only an equal prefix can have.

digest(i) = BLAKE2b(digest(i-1) | token ids of block i | image parts inside block i), and the chain starts at a digest
of a secret of this process and the request's cache salt. Nobody outside knows the secret, so no tenant can search for
two prompts whose digests collide, or for a name of somebody else's blocks.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from hashlib import blake2b

from remuda.protocol.request import ImageInput

_DIGEST_BYTES = 24  # parent, 16 tokens and the digest's own parameters fit one BLAKE2b compression


class BlockHasher:
    """Starts and extends the digest chains of one engine's requests."""

    def __init__(self, block_size: int, secret: bytes | None = None) -> None:
        self.block_size = block_size
        self._secret = os.urandom(32) if secret is None else secret

    def root(self, cache_salt: str) -> bytes:
        """The digest that stands before block 0."""
        return blake2b(cache_salt.encode(), key=self._secret, digest_size=_DIGEST_BYTES).digest()

    def extend(self, chain: list[bytes], token_ids: Sequence[int], images: Sequence[ImageInput], blocks: int) -> None:
        """Append digests until `chain` (root first) covers `blocks` full blocks of `token_ids`."""
        done, size = len(chain) - 1, self.block_size
        if done >= blocks:
            return
        parent = chain[-1]
        data = memoryview(array("I", token_ids[done * size : blocks * size]).tobytes())
        stride = 4 * size
        for at in range(blocks - done):
            digest = blake2b(parent, digest_size=_DIGEST_BYTES)
            digest.update(data[at * stride : (at + 1) * stride])
            if images:
                digest.update(_image_parts(images, (done + at) * size, (done + at + 1) * size))
            parent = digest.digest()
            chain.append(parent)


def _image_parts(images: Sequence[ImageInput], first: int, last: int) -> bytes:
    """The images that reach into positions [first, last): what they show and where they lie."""
    inside = (image for image in images if image.start < last and first < image.start + image.length)
    return "".join(f"{image.digest}@{image.start}+{image.length};" for image in inside).encode()
