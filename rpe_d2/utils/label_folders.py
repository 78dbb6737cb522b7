"""Folders of label maps, matched with images by the names of the files."""

import os
import re
from typing import Dict, List, Sequence, Tuple

from .image_files import image_stem, list_images, printable

__all__ = ["LABEL_SUFFIXES", "common_stem", "match_files"]

# What programs append to the name of an image for its label map.
LABEL_SUFFIXES = ("_cp_masks", "_masks", "_mask", "_labels", "_label", ".labels", "_seg", "_gt")
_SUFFIX = re.compile(f"({'|'.join(map(re.escape, LABEL_SUFFIXES))})$")


def common_stem(file_name: str) -> str:
    """Returns the name of a file without folder, suffix and one of ``LABEL_SUFFIXES``."""
    stem = image_stem(file_name)
    return _SUFFIX.sub("", stem) or stem


def match_files(
    first: Tuple[str, str], second: Tuple[str, str], *, all_of_second: bool = False
) -> List[Tuple[str, str]]:
    """Matches the files of two folders by their names, such as images and their label maps.

    The names of a pair differ in the suffix and in one of ``LABEL_SUFFIXES`` at most. A folder may
    contain both files of a pair.

    Args:
        first, second: a key or an argument, for messages, and the folder that it names.
        all_of_second: whether each file of the second folder has to have a partner, too.

    Returns:
        The paths of each pair, in alphabetical order of the first.

    Raises:
        ValueError: A folder does not exist, a file has no partner, or it has several. The message
            is one line that names the file.
    """
    files = [_files(*first), _files(*second)]
    if os.path.realpath(first[1]) == os.path.realpath(second[1]):
        labels = [file for file in files[0] if _SUFFIX.search(image_stem(file))]
        files = [[file for file in files[0] if file not in set(labels)], labels]
    partners = _by_stem(second, files[1])
    _by_stem(first, files[0])
    pairs = []
    for file in files[0]:
        partner = partners.pop(common_stem(file), None)
        if partner is None:
            raise ValueError(
                f"{first[0]}: {printable(file)} has no partner in {second[0]} {second[1]}; "
                f"allowed: a file of the same name, or with {', '.join(LABEL_SUFFIXES)}"
            )
        pairs.append((file, partner))
    if partners and all_of_second:
        raise ValueError(
            f"{second[0]}: {printable(next(iter(partners.values())))} has no partner in "
            f"{first[0]} {first[1]}; allowed: a file of the same name"
        )
    return pairs


def _files(key: str, folder: str) -> List[str]:
    if not os.path.isdir(folder):
        raise ValueError(f"{key} is {folder}; there is no such folder")
    files = list_images(folder)
    if not files:
        raise ValueError(f"{key} is {folder}, which has no images; allowed: a folder of images")
    return files


def _by_stem(named: Tuple[str, str], files: Sequence[str]) -> Dict[str, str]:
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
