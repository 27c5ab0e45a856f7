"""What the hub says about a repository, and what its refusals mean for the user."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any

from huggingface_hub import HfApi, constants, get_token, hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers

from remuda import __version__
from remuda.hub.cache import RemoteFile
from remuda.protocol.errors import ConfigError

_FULL = (errno.ENOSPC, errno.EDQUOT)


class HubRefusal(ConfigError):
    """The hub gives nothing. `passing`: what is in the cache may well be what it would have given."""

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True)
class Repository:
    """A model repository at one commit: its top-level files with sizes and checksums."""

    name: str
    revision: str
    commit: str
    files: dict[str, RemoteFile]
    token: str | None

    @classmethod
    def ask(cls, name: str, revision: str | None, token: str | None) -> Repository:
        """One request. Raises HubRefusal."""
        revision = revision or constants.DEFAULT_REVISION
        try:
            info = HfApi(library_name="remuda", library_version=__version__).model_info(
                name, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT, token=token
            )
            entries = [_remote_file(sibling) for sibling in info.siblings or ()]
            return cls(name, revision, _commit(info), {entry.name: entry for entry in entries if entry}, token)
        except (HTTPError, OSError) as error:
            raise refusal(error, name, revision, token) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise HubRefusal(
                f"{constants.ENDPOINT} does not answer about {name} as the Hugging Face Hub does ({error!r:.200}): "
                "check HF_ENDPOINT and proxies",
                passing=True,
            ) from None

    def url(self, file: RemoteFile) -> str:
        return hf_hub_url(self.name, file.name, revision=self.commit)

    def headers(self) -> dict[str, str]:
        return build_hf_headers(token=self.token, library_name="remuda", library_version=__version__)


def _commit(info: Any) -> str:
    if not isinstance(info.sha, str):
        raise ValueError("no commit")
    return info.sha


def _remote_file(sibling: Any) -> RemoteFile | None:
    """None for what lies in a folder: nothing that is served does, and no path of the hub's leads out of the cache."""
    if "/" in sibling.rfilename or sibling.rfilename.startswith("."):
        return None
    digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    if not isinstance(sibling.size, int) or not str(digest).isalnum():
        raise ValueError(f"no size or checksum of {sibling.rfilename}")
    return RemoteFile(sibling.rfilename, sibling.size, digest)


def refusal(error: Exception, name: str, revision: str, token: str | None) -> HubRefusal:
    """One line for the user: what is wrong and what to do. Most special first."""
    page = f"{constants.ENDPOINT}/{name}"
    given = token or get_token()
    how = "set HF_TOKEN, give --hf-token, or run `hf auth login`"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    match error:
        case GatedRepoError() if given:
            return HubRefusal(f"{name} is gated, and this token has no access: ask for it at {page}", passing=True)
        case GatedRepoError():
            return HubRefusal(f"{name} is gated: accept its conditions at {page}, then {how}", passing=True)
        case DisabledRepoError():
            return HubRefusal(f"{page} has been disabled by the hub: choose another model", passing=True)
        case RevisionNotFoundError():
            return HubRefusal(f"{name} has no revision {revision!r}: see {page}/refs for those it has", passing=False)
        case RepositoryNotFoundError():
            return HubRefusal(
                f"{name} is neither a directory here nor a repository at {constants.ENDPOINT} that you may see: check "
                f"the name; for a private one {how}",
                passing=bool(status == 401),
            )
    if status in (401, 403):
        return HubRefusal(f"{constants.ENDPOINT} refuses the token for {name}: {how}", passing=True)
    if status:
        when = "later" if status in (408, 429) or status >= 500 else "again, and check HF_ENDPOINT and proxies"
        return HubRefusal(f"{constants.ENDPOINT} answers {status} for {name}: try {when}", passing=True)
    return _unreachable(error)


def _unreachable(error: Exception) -> HubRefusal:
    kind = type(error).__name__
    what = "does not answer in time" if "Timeout" in kind else f"cannot be reached ({error or kind})"
    return HubRefusal(
        f"{constants.ENDPOINT} {what}: check the network and proxies (HTTPS_PROXY, HF_ENDPOINT), or give the directory "
        "of a checkpoint; what has been downloaded is kept",
        passing=True,
    )


def disk_refusal(error: Exception, root: object) -> ConfigError | None:
    """If it is this machine's disk that failed, not the hub."""
    if not isinstance(error, OSError):
        return None
    if error.errno in _FULL:
        return ConfigError(
            f"no space left at {root}: free some and run the same command again, which goes on where this stopped, or "
            "give another place (--download-dir, HF_HOME)"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return ConfigError(f"cannot write to {root}: {error.strerror}; give another place (--download-dir, HF_HOME)")
    return None
