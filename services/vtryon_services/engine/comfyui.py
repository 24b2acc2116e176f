"""Files of ComfyUI's `models` folder that make a checkpoint, before anything in them is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from vtryon.checkpoint_source import ComfyFolder, HubRepository, parse_source
from vtryon.errors import SettingsError
from vtryon_services.engine import hub
from vtryon_services.engine.refusals import few, not_found, unsupported

# Part: its folders, the newer name first, and the files to choose from without a name.
_PLACES = {
    "transformer": (("diffusion_models", "unet"), "*.safetensors"),
    "text_encoder": (("text_encoders", "clip"), "qwen_2.5_vl_7b*.safetensors"),
    "vae": (("vae",), "qwen_image_vae.safetensors"),
}
# Beside `models` in ComfyUI's own folder.
_TOKENIZER = Path("comfy", "text_encoders", "qwen25_tokenizer")


@dataclass(frozen=True, slots=True)
class ComfyFiles:
    """The files of a checkpoint.

    Attributes:
        tokenizer: a folder with tokenizer_config.json.
    """

    transformer: Path
    text_encoder: Path
    vae: Path
    tokenizer: Path


def find_files(source: ComfyFolder) -> ComfyFiles:
    """Find the file of each part.

    Raises:
        SettingsError: a part has no file, or several and none is chosen.
    """
    if not source.folder.is_dir():
        raise not_found(f"no checkpoint in {source.folder.name}: there is no such folder")
    transformer, text_encoder, vae = (_find(source, part) for part in _PLACES)
    return ComfyFiles(transformer, text_encoder, vae, _find_tokenizer(source))


def _find(source: ComfyFolder, part: str) -> Path:
    folders, pattern = _PLACES[part]
    found = {}
    for folder in (source.folder / name for name in reversed(folders)):
        for path in _walk(folder):
            found[path.relative_to(folder).as_posix()] = path
    where = f"{' and '.join(f'{name}/' for name in folders)} of {source.folder.name}"
    chosen = dict(source.choices).get(part)
    fitting = [one for one in sorted(found) if fnmatch(one.rpartition("/")[2], pattern)]
    if chosen is None and len(fitting) == 1:
        return found[fitting[0]]
    if chosen is None:
        raise _not_one(where, part, fitting, sorted(found))
    if chosen not in found:
        there = few(sorted(found)) or "no safetensors file"
        raise not_found(f"{where} has no {chosen}; there is {there}")
    return found[chosen]


def _walk(folder: Path) -> Iterator[Path]:
    """Give safetensors files, also in folders that are links, as ComfyUI finds them."""
    entered: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in entered:  # a link to a folder above
            folders.clear()
            continue
        entered.add(real)
        yield from sorted(Path(place, name) for name in names if name.endswith(".safetensors"))


def _not_one(where: str, part: str, fitting: list[str], found: list[str]) -> SettingsError:
    option = f"comfyui:FOLDER?{part}=NAME"
    if fitting:
        names = ", ".join(fitting)
        return unsupported(f"{where} has several files for {part}: {names}; name one by {option}")
    only = f", only {few(found)}" if found else ""
    return not_found(
        f"{where} has no {_PLACES[part][1]}{only}: put the file there, or name one by {option}"
    )


def _find_tokenizer(source: ComfyFolder) -> Path:
    chosen = dict(source.choices).get("tokenizer")
    if chosen is None:
        places = [source.folder.absolute().parent / _TOKENIZER]
    elif isinstance(named := parse_source(chosen), HubRepository):
        places = [hub.tokenizer(named)]
    else:
        places = [Path(chosen, "tokenizer"), Path(chosen)]
    for place in places:
        if (place / "tokenizer_config.json").is_file():
            return place
    looked = f"{_TOKENIZER} beside the models" if chosen is None else chosen
    raise not_found(
        f"ComfyUI's files hold no tokenizer, and there is none in {looked}: name a folder or "
        "repository that has it, by comfyui:FOLDER?tokenizer=hf://Qwen/Qwen-Image-Edit-2511 or "
        "tokenizer=FOLDER"
    )
