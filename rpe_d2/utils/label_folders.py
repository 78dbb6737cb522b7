"""Folders of label maps, matched with images by the names of the files."""

import os
import re
from typing import Dict, List, Sequence, Tuple

from .image_files import IMAGE_SUFFIXES, image_stem, list_images, printable

__all__ = ["NAME_ENDINGS", "common_stem", "match_files", "unique_by_stem"]

# What programs append to the name of an image for its label map.
NAME_ENDINGS = ("_cp_masks", "_masks", "_mask", "_labels", "_label", ".labels", "_seg", "_gt")
_ENDING = re.compile(f"({'|'.join(map(re.escape, NAME_ENDINGS))})$")


def common_stem(file_name: str) -> str:
    """Returns the name of a file without folder, suffix and one of ``NAME_ENDINGS``."""
    stem = image_stem(file_name)
    return _ENDING.sub("", stem) or stem


def match_files(
    first: Tuple[str, str], second: Tuple[str, str], suffixes: Sequence[str] = IMAGE_SUFFIXES
) -> List[Tuple[str, str]]:
    """Matches the files of two folders by their names, such as images and their label maps.

    The names of a pair differ in the suffix and in one of ``NAME_ENDINGS`` at most. A folder may
    contain both files of a pair.

    Args:
        first, second: a key or an argument, for messages, and the folder that it names.
        suffixes: those of the files in the first folder, in lower case.

    Returns:
        The paths of each pair, in alphabetical order of the first.

    Raises:
        ValueError: A folder does not exist, a file has no partner, or it has several. The message
            is one line that names the file.
    """
    files = [_files(*first, suffixes), _files(*second, IMAGE_SUFFIXES)]
    if os.path.realpath(first[1]) == os.path.realpath(second[1]):
        is_label = [bool(_ENDING.search(image_stem(file))) for file in files[0]]
        files = [[f for f, label in zip(files[0], is_label) if label == kind] for kind in (0, 1)]
    partners = unique_by_stem(second, files[1])
    unique_by_stem(first, files[0])
    pairs = []
    for file in files[0]:
        partner = partners.pop(common_stem(file), None)
        if partner is None:
            raise ValueError(
                f"{first[0]}: {printable(file)} has no partner in {second[0]} {second[1]}; "
                f"allowed: a file of the same name, or with {', '.join(NAME_ENDINGS)}"
            )
        pairs.append((file, partner))
    return pairs


def _files(key: str, folder: str, suffixes: Sequence[str]) -> List[str]:
    if not os.path.isdir(folder):
        raise ValueError(f"{key} is {folder}; there is no such folder")
    files = list_images(folder, suffixes=suffixes)
    if not files:
        kind = "images" if suffixes == IMAGE_SUFFIXES else f"{', '.join(suffixes)} files"
        raise ValueError(f"{key} is {folder}, which has no {kind}; allowed: a folder of {kind}")
    return files


def unique_by_stem(named: Tuple[str, str], files: Sequence[str]) -> Dict[str, str]:
    """Returns files by the common part of their names.

    Args:
        named: a key or an argument, for messages, and the folder that it names.
        files: paths of files in the folder.

    Raises:
        ValueError: Two files share it.
    """
    by_stem: Dict[str, str] = {}
    for file in files:
        stem = common_stem(file)
        if stem in by_stem:
            raise ValueError(
                f"{named[0]} {named[1]} has {printable(os.path.basename(by_stem[stem]))} and "
                f"{printable(os.path.basename(file))}; allowed: one file for {printable(stem)}"
            )
        by_stem[stem] = file
    return by_stem
