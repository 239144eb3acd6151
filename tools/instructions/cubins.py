"""Finds machine code in libraries, objects and cubins, and nvdisasm, which prints it."""

from __future__ import annotations

import math
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
REGISTERS, THREADS = 0x2F04, 0x0504  # attributes of .nv.info
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


@dataclass(frozen=True)
class Resources:
    """What a kernel takes of a multiprocessor.

    Attributes:
        registers: of a thread.
        threads: of a block, at most; 0 if the kernel does not say.
    """

    registers: int = 0
    threads: int = 0


def attributes(info: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields the attributes of a section .nv.info and their values."""
    at = 0
    while at + 4 <= len(info):
        attribute, size = struct.unpack_from("<HH", info, at)
        long = attribute & 0xFF == 4  # other formats keep their value in `size`
        yield attribute, info[at + 4 : at + 4 + size] if long else info[at + 2 : at + 4]
        at += 4 + (size if long else 0)


def resources_of(cubin: bytes) -> dict[str, Resources]:
    """Returns what each kernel takes, by its mangled name."""
    found = sections(cubin)
    registers: dict[str, int] = {}
    threads: dict[str, int] = {}
    for section in found:
        if section.name == ".nv.info":
            symbols = found[section.link]
            names = found[symbols.link].data
            for attribute, value in attributes(section.data):
                if attribute == REGISTERS:
                    symbol, count = struct.unpack("<II", value)
                    (begin,) = struct.unpack_from("<I", symbols.data, symbol * 24)
                    registers[names[begin : names.index(b"\0", begin)].decode()] = count
        elif section.name.startswith(".nv.info."):
            name = section.name.removeprefix(".nv.info.")
            sizes = [value for attribute, value in attributes(section.data) if attribute == THREADS]
            threads[name] = math.prod(struct.unpack("<III", sizes[0])) if sizes else 0
    return {name: Resources(count, threads.get(name, 0)) for name, count in registers.items()}
