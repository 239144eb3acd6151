"""Finds machine code in libraries, objects and cubins, and nvdisasm, which prints it."""

from __future__ import annotations

import os
import shutil
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WHEEL = "nvidia-cuda-nvdisasm"
FATBIN = 0xBA55ED50  # begins each container of compiled code in the section .nv_fatbin
CUBIN, COMPRESSED = 2, 0xA000  # kind of an entry of a container; flags of compressed ones
CUDA = 190  # machine of an ELF file
REGISTERS = 0x2F04  # attribute of .nv.info: registers of a kernel
HOMES = ("/usr/local/cuda", "/opt/cuda")


@dataclass(frozen=True)
class Section:
    """A section of an ELF file."""

    name: str
    data: bytes
    link: int


def find_nvdisasm() -> str:
    """Returns nvdisasm from PATH, a CUDA toolkit, or the package nvidia-cuda-nvdisasm.

    Raises:
        SystemExit: it is in none of them.
    """
    if found := shutil.which("nvdisasm"):
        return found
    homes = [
        Path(home) for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), *HOMES) if home
    ]
    for folder in sys.path:
        homes += sorted(Path(folder or ".").glob("nvidia/*"))
    for home in homes:
        if (tool := home / "bin" / "nvdisasm").exists():
            return str(tool)
    raise SystemExit(f"tools.instructions: nvdisasm is not installed; pip install {WHEEL}, or put it on PATH")


def sections(elf: bytes) -> list[Section]:
    """Returns the sections of a 64-bit ELF file."""
    (offset,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, offset + i * size) for i in range(count)]

    def name_at(i: int) -> str:
        begin = headers[names][4] + headers[i][0]
        return elf[begin : elf.index(b"\0", begin)].decode()

    # Type 8 is a section without bytes in the file.
    return [
        Section(name_at(i), b"" if h[1] == 8 else elf[h[4] : h[4] + h[5]], h[6])
        for i, h in enumerate(headers)
    ]


def cubins_in(fatbin: bytes, architecture: int) -> Iterator[bytes]:
    """Yields the machine code for one architecture in a section .nv_fatbin.

    Raises:
        ValueError: it is compressed.
    """
    at = 0
    while at + 16 <= len(fatbin):
        magic, _version, header, size = struct.unpack_from("<IHHQ", fatbin, at)
        if magic != FATBIN:  # padding between containers
            at += 8
            continue
        entry, end = at + header, at + header + size
        while entry < end:
            kind, _version, entry_header, entry_size = struct.unpack_from("<HHIQ", fatbin, entry)
            (arch,), (flags,) = (
                struct.unpack_from("<I", fatbin, entry + 28),
                struct.unpack_from("<Q", fatbin, entry + 40),
            )
            if (kind, arch) == (CUBIN, architecture):
                if flags & COMPRESSED:
                    raise ValueError(
                        "the machine code is compressed; build with nvcc --compress-mode=default"
                    )
                yield fatbin[entry + entry_header : entry + entry_header + entry_size]
            entry += entry_header + entry_size
        at = end


def read_cubins(path: Path, architecture: int) -> list[bytes]:
    """Returns the machine code for one architecture, such as 90, in a cubin, an object or a library.

    Raises:
        ValueError: the file has none.
    """
    data = path.read_bytes()
    if data[:4] != b"\x7fELF":
        raise ValueError(f"{path} is no cubin, object or library; compile it first")
    if struct.unpack_from("<H", data, 18)[0] == CUDA:
        return [data]
    fatbins = [section.data for section in sections(data) if section.name == ".nv_fatbin"]
    found = [cubin for fatbin in fatbins for cubin in cubins_in(fatbin, architecture)]
    if not found:
        raise ValueError(
            f"{path} has no kernels for sm_{architecture}; build it with CUDA for that architecture"
        )
    return found


def registers_of(cubin: bytes) -> dict[str, int]:
    """Returns the registers of each kernel, by its mangled name."""
    found = sections(cubin)
    info = next((s for s in found if s.name == ".nv.info"), None)
    if info is None:
        return {}
    symbols, counts, at = found[info.link], {}, 0
    names = found[symbols.link].data
    while at + 4 <= len(info.data):
        attribute, size = struct.unpack_from("<HH", info.data, at)
        if attribute == REGISTERS:
            symbol, count = struct.unpack_from("<II", info.data, at + 4)
            (begin,) = struct.unpack_from("<I", symbols.data, symbol * 24)
            counts[names[begin : names.index(b"\0", begin)].decode()] = count
        at += 4 + (size if attribute & 0xFF == 4 else 0)  # other formats keep their value in `size`
    return counts
