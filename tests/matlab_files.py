"Write struct arrays as MATLAB files of level 5 and 7.3, and lesions in the layout of OASBUD."

from collections.abc import Iterable, Sequence
from pathlib import Path

import h5py
import numpy as np
import scipy.io

MATLAB_NAMES = {"float64": "double", "float32": "single", "bool": "logical"}


def write_structs(
    path: Path | str, variable: str, structs: Sequence[dict], version: str = "v5", text: str = ""
) -> Path:
    """Write a struct array; each field is a number array (up to two axes) or a text.

    Parameters
    ----------
    path : Path or str
        Where to write.
    variable : str
        Name of the struct array.
    structs : sequence of dict
        Field name -> array or text, the same fields in each.
    version : str
        `v5` or `v7.3`.
    text : str
        Added to the text at the beginning of the file.
    """
    path = Path(path)
    {"v5": write_v5, "v7.3": write_v73}[version](path, variable, structs)
    number, mark = ("5.0", b"\x00\x01IM") if version == "v5" else ("7.3", b"\x00\x02IM")
    start = f"MATLAB {number} MAT-file, {text or 'written by medgan_nb'}"
    with open(path, "r+b") as file:
        file.write(start.encode("latin-1", "replace")[:116].ljust(116) + bytes(8) + mark)
    return path


def write_v5(path: Path, variable: str, structs: Sequence[dict]) -> None:
    "A level 5 file, compressed, by SciPy."
    table = np.zeros((1, len(structs)), [(name, object) for name in structs[0]])
    for k, values in enumerate(structs):
        table[0, k] = tuple(values.values())
    scipy.io.savemat(path, {variable: table}, do_compression=True)


def write_v73(path: Path, variable: str, structs: Sequence[dict]) -> None:
    "A 7.3 file: each value in `#refs#`, axes reversed, and a dataset of references for each field."
    with h5py.File(path, "w", userblock_size=512) as file:
        group, values = file.create_group(variable), file.create_group("#refs#")
        group.attrs["MATLAB_class"] = np.bytes_("struct")
        for name in structs[0]:
            references = [
                write_value(values, f"{name}{k}", row[name]).ref for k, row in enumerate(structs)
            ]
            dataset = group.create_dataset(name, (len(structs), 1), h5py.ref_dtype)
            dataset[:, 0] = np.array(references, h5py.ref_dtype)


def write_value(group: h5py.Group, name: str, value) -> h5py.Dataset:
    "One value as MATLAB stores it."
    is_text = isinstance(value, str)
    array = np.array([[ord(c) for c in value]], np.uint16) if is_text else np.atleast_2d(value)
    options = {"compression": "gzip", "compression_opts": 1} if array.size > 64 else {}
    dataset = group.create_dataset(name, data=array.T, **options)
    kind = "char" if is_text else MATLAB_NAMES.get(array.dtype.name, array.dtype.name)
    dataset.attrs["MATLAB_class"] = np.bytes_(kind)
    return dataset


def write_oasbud(path: Path | str, lesions: Iterable, version="v5", malignant=1, text="") -> Path:
    """Write lesions in the layout of the OASBUD file.

    Parameters
    ----------
    path : Path or str
        Where to write.
    lesions : iterable of data.ultrasound_images.Lesion
        A hundred of them, 52 malignant, for a file that `datasets.oasbud.load` takes.
    version : str
        `v5` or `v7.3`.
    malignant : int
        The value of `class` that means malignant, 0 or 1.
    text : str
        Added to the text at the beginning of the file.
    """
    structs = []
    for lesion in lesions:
        values = {"id": lesion.id}
        for number, (rf, _) in enumerate(lesion.views, 1):
            values[f"rf{number}"] = np.asarray(rf)
        for number, (_, mask) in enumerate(lesion.views, 1):
            values[f"roi{number}"] = np.asarray(mask).astype(np.uint8)
        label = malignant if lesion.malignant else 1 - malignant
        structs.append(values | {"birads": lesion.birads, "class": np.array([[label]], np.uint8)})
    return write_structs(path, "data", structs, version, text)
