"""The files of a repository, as Hugging Face or ModelScope lists them."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode

from glmtune.download.repository import FileSum, Repository, RepositoryFile
from glmtune.errors import ModelError, summarize_error

MODELSCOPE = "https://modelscope.cn"
HUGGINGFACE_MIRROR = "https://hf-mirror.com"
DEFAULT_REVISIONS = {"huggingface": "main", "modelscope": "master"}
_TIMEOUT_S = 30.0
# The organisation of these checkpoints has other names on ModelScope.
_MODELSCOPE_OWNERS = {"thudm": "ZhipuAI", "zai-org": "ZhipuAI"}


def list_repository(name: str, hub: str, revision: str | None = None, mirror: str | None = None) -> Repository:
    """List all files of a repository.

    Args:
        name: `org/name`.
        hub: `huggingface` or `modelscope`.
        revision: a branch, tag or commit; the hub's default when left out.
        mirror: the address of a server that answers as the hub does.

    Raises:
        ModelError: the hub cannot be reached or does not have it.
    """
    wanted = revision or DEFAULT_REVISIONS[hub]
    repository = (_list_modelscope if hub == "modelscope" else _list_huggingface)(name, wanted, mirror)
    repository.mirror = mirror or ""
    return repository


def make_file_url(repository: Repository, path: str) -> str:
    """The address of a file."""
    if repository.hub == "modelscope":
        query = urlencode({"Revision": repository.revision, "FilePath": path})
        return f"{_get_endpoint('modelscope', repository.mirror)}/api/v1/models/{repository.id}/repo?{query}"
    revision = quote(repository.revision, safe="")
    return f"{_get_endpoint('huggingface', repository.mirror)}/{repository.id}/resolve/{revision}/{quote(path)}"


def make_headers(hub: str, mirror: str | None = None) -> dict[str, str]:
    """Headers of requests to a hub, with the token of `hf auth login` or HF_TOKEN for Hugging Face.

    Args:
        hub: `huggingface` or `modelscope`.
        mirror: a server in place of the hub, which gets no token: it is somebody else's.
    """
    if hub == "modelscope":
        return {"user-agent": "glmtune"}
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers(token=False if mirror else None, library_name="glmtune")


def _get_endpoint(hub: str, mirror: str | None) -> str:
    if mirror:
        return mirror.rstrip("/")
    if hub == "modelscope":
        return MODELSCOPE
    from huggingface_hub import constants

    return constants.ENDPOINT  # HF_ENDPOINT


def _list_huggingface(name: str, revision: str, mirror: str | None) -> Repository:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    endpoint = _get_endpoint("huggingface", mirror)
    try:
        api = HfApi(endpoint=endpoint, token=False if mirror else None, library_name="glmtune")
        info = api.model_info(name, revision=revision, files_metadata=True, timeout=_TIMEOUT_S)
    except GatedRepoError:
        raise _make_gated_error(name, endpoint) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"{name}: not on {endpoint}, or private.", "Check the spelling; for a private one run: hf auth login"
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"{name}: has no revision {revision!r}.", "Give a branch, a tag or a commit of it.") from None
    except (HfHubHTTPError, OSError, ValueError, TypeError, KeyError, ImportError) as error:  # ImportError: SOCKS
        raise _make_network_error(name, "huggingface", endpoint, error) from None
    except Exception as error:  # httpx's kinds are no OSError
        if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore", "ssl"):
            raise
        raise _make_network_error(name, "huggingface", endpoint, error) from None
    repository = Repository("huggingface", info.id or name, info.sha or revision)
    for entry in info.siblings or ():
        file_sum = FileSum("git-sha1", entry.blob_id) if entry.blob_id else None
        size = entry.size
        if entry.lfs is not None:
            file_sum, size = FileSum("sha256", entry.lfs.sha256.lower()), entry.lfs.size
        repository.files[entry.rfilename] = RepositoryFile(entry.rfilename, size, file_sum)
    return repository


def _make_gated_error(name: str, endpoint: str) -> ModelError:
    return ModelError(
        f"{name}: its owner has to give you access.",
        f"Ask for it at {endpoint}/{name}, then log in: hf auth login",
    )


def _list_modelscope(name: str, revision: str, mirror: str | None) -> Repository:
    import httpx

    endpoint = _get_endpoint("modelscope", mirror)
    query = urlencode({"Revision": revision, "Recursive": "true"})
    url = f"{endpoint}/api/v1/models/{name}/repo/files?{query}"
    try:
        answer = httpx.get(url, headers=make_headers("modelscope"), timeout=_TIMEOUT_S, follow_redirects=True)
        content: Any = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, ImportError) as error:  # ImportError: SOCKS
        raise _make_network_error(name, "modelscope", endpoint, error) from None
    files = (content.get("Data") or {}).get("Files") if isinstance(content, dict) else None
    if not isinstance(files, list):
        message = content.get("Message", "") if isinstance(content, dict) else ""
        raise ModelError(
            f"{name}: {endpoint} does not list it at revision {revision!r} ({message or answer.status_code}).",
            "Check the spelling of name and revision; ModelScope's names are like ZhipuAI/chatglm3-6b.",
        )
    repository = Repository("modelscope", name, revision)
    for entry in files:
        if not isinstance(entry, dict) or entry.get("Type") == "tree" or not isinstance(entry.get("Path"), str):
            continue
        digits, size = entry.get("Sha256"), entry.get("Size")
        file_sum = FileSum("sha256", digits.lower()) if isinstance(digits, str) and len(digits) == 64 else None
        path = entry["Path"]
        repository.files[path] = RepositoryFile(path, size if isinstance(size, int) else None, file_sum)
    return repository


def name_on_modelscope(name: str) -> str:
    """What a repository of Hugging Face is called on ModelScope."""
    owner, _, rest = name.partition("/")
    return f"{_MODELSCOPE_OWNERS.get(owner.lower(), owner)}/{rest}"


def name_on_huggingface(name: str) -> str:
    """What a repository of ModelScope is called on Hugging Face, which knows the oldest name of an organisation."""
    owner, _, rest = name.partition("/")
    return f"THUDM/{rest}" if owner in _MODELSCOPE_OWNERS.values() else name


def _make_network_error(name: str, hub: str, endpoint: str, error: BaseException) -> ModelError:
    reason = summarize_error(error, 160)
    if hub == "modelscope":
        advice = f"Check the network and the proxy, or try: glmtune fetch {name_on_huggingface(name)} --hub huggingface"
    else:
        advice = (
            f"Check the network and the proxy (glmtune doctor {name}), "
            f"or try: glmtune fetch {name} --mirror {HUGGINGFACE_MIRROR}, "
            f"or: glmtune fetch {name_on_modelscope(name)} --hub modelscope"
        )
    return ModelError(f"{name}: {endpoint} cannot be reached or does not answer as a hub ({reason}).", advice)
