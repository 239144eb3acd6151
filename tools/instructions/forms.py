"""Forms of the kernels' loops."""

from __future__ import annotations

from collections.abc import Callable

from tools.instructions.kernels import CHUNK, ROW, Form, Instance, Kernel, Share
from tools.tuning import defaults


def every(number: float) -> Share:
    """One iteration for `number` units of work."""
    return lambda instance: 1 / number


def _tiles(instance: Instance) -> float:
    return instance.size / 16


def _always(instance: Instance) -> float:
    return 1.0


def _one_in(rows: Share) -> Share:
    """One iteration for the rows that a function returns."""
    return lambda instance: 1 / rows(instance)


def _accesses(rows: Share, number: Share) -> Callable[[Instance], int]:
    """Accesses of `rows` rows to `number` tensors."""
    return lambda instance: round(rows(instance) * number(instance))


# Heads of up to 32 channels: a warp has a head, and an iteration of the forward a step of several tiles of 16
# rows.
def _steps(instance: Instance) -> float:
    bytes_of_tile = 16 * instance.size * instance.element_size
    return max(1, defaults("gated_rela")["STEP_BYTES"] // bytes_of_tile)


_NARROW_FORWARD = (Form(6, {5: _one_in(_steps)}), Form(5, {5: _one_in(_steps)}))
_NARROW_KEYS = (Form(4, {4: _one_in(_steps)}),)
_NARROW_QUERIES = (Form(4, {3: _always, 4: _always}, once=1), Form(3, {3: _always}, once=1))


# Heads of 64 and 128 channels: a warp has 16 channels, and an iteration of the outer loop a chunk of several
# tiles of 16 rows. The warps share out halves of the tiles of scores, a triangle.
def _row_tiles(instance: Instance) -> float:
    rows = 32 if instance.element_size == 4 else defaults("gated_rela")[f"WIDE_ROWS_{instance.size}"]
    return rows / 16


def _scores(instance: Instance) -> float:
    return (_row_tiles(instance) + 1) / _tiles(instance)


# The second form has fewer registers, so that a loop over two pairs of tiles of channels makes each half.
_WIDE_FORWARD = (
    Form(9, {4: _one_in(_row_tiles), 5: _always, 6: _scores, 7: _always}),
    Form(10, {4: _one_in(_row_tiles), 5: _always, 6: _scores, 7: lambda i: 2 * _scores(i), 8: _always}),
)
_WIDE_KEYS = (Form(4, {2: _one_in(_row_tiles), 3: _always, 4: _always}),)


# The backward of these heads: the loop over units of work, keys, and the sweep over chunks, in which a warp
# has one tile of rows, and the warps share out the halves of the tiles of one triangle of scores, or of two
# if it computes gradients. In float32 a loop over pairs of tiles of channels makes each of them. The compiler
# unrolls some of these loops.
def _gradient_tiles(instance: Instance) -> float:
    return 1 if instance.element_size == 4 and instance.size == 128 else 2


def _gradient_parts(instance: Instance) -> float:
    return 1 / _gradient_tiles(instance)


def _jobs(instance: Instance) -> float:
    triangles = 2 if instance.sizes[1] else 1
    return triangles * (1 + _gradient_parts(instance)) / _tiles(instance)


def _parts_of_jobs(instance: Instance) -> float:
    return _jobs(instance) * _tiles(instance) / 2


def _inner_jobs(instance: Instance) -> float:
    return _parts_of_jobs(instance) if instance.element_size == 4 else _jobs(instance)


_WIDE_SWEEP = {3: _one_in(_gradient_tiles), 5: _one_in(_gradient_tiles)}
_WIDE_BACKWARD = (
    Form(8, _WIDE_SWEEP, once=1),
    Form(9, {**_WIDE_SWEEP, 6: _inner_jobs}, once=1),
    Form(10, {**_WIDE_SWEEP, 6: _jobs, 7: _parts_of_jobs}, once=1),
)
_WIDE_SUMS = {3: _one_in(_gradient_tiles), 4: _one_in(_gradient_tiles)}
_WIDE_QUERIES = (Form(4, _WIDE_SUMS, once=1), Form(5, {**_WIDE_SUMS, 5: _inner_jobs}, once=1))


# The loop over units of work, keys (causal only), copies of rows at the ends of a unit (in float32 two
# loops), and the sweep over chunks.
_NARROW_BACKWARD = (
    Form(8, {3: _always, 5: _always}, once=1),  # causal, 16 bits
    Form(9, {3: _always, 6: _always}, once=1),  # causal, float32
    Form(7, {4: _always}, once=1),
    Form(8, {5: _always}, once=1),
)


# selective_scan. The forward: lanes of a channel, states of a lane, and 0 for the forward, 1 and 2 for the
# sums over segments in both directions. The lanes of a channel divide the rows that they load and store.
def _lane_rows(instance: Instance) -> float:
    return max(1, defaults("selective_scan")["FORWARD_ROWS"] / instance.size)


def _group(loop: int) -> Form:
    """A loop over groups of rows, whose kinds have 4, 2 and 3 tensors of rows."""
    return Form(
        loop,
        {loop: lambda i: 1 / defaults("selective_scan")["FORWARD_ROWS"]},
        {loop: _accesses(_lane_rows, lambda i: (4, 2, 3)[i.sizes[2]])},
    )


_SELECTIVE_SCAN = (_group(3), _group(2))


# The backward: lanes of a channel, channels and states of a thread. Chunks of 16 rows from checkpoints, in
# tiles of 4; the first pass omits the last tile. A block has 128 threads. With up to 16 states, it stages the
# rows of B and C of a chunk and adds their gradients at once; with more, it stages 4 to 8 rows in each pass.
# Other loops load and store states of channels that are not all there.
def _all_states(instance: Instance) -> float:
    lanes, _channels, states = instance.sizes
    return lanes * states


def _quads(instance: Instance) -> float:
    return _all_states(instance) / 256


_CHUNK_LOADS, _TILE_ACCESSES = 14, 5
_SELECTIVE_BACKWARD = (
    Form(
        15,
        {6: every(16), 7: _quads, 9: every(16 / 3), 10: every(4), 11: _quads},
        {6: lambda i: _CHUNK_LOADS + _TILE_ACCESSES + 2, 10: lambda i: _TILE_ACCESSES + 1, 11: lambda i: 1},
        once=2,
    ),
    Form(
        16,
        {6: every(16), 8: every(16 / 3), 9: _quads, 10: every(4), 11: _quads, 12: _quads},
        {6: lambda i: _CHUNK_LOADS + _TILE_ACCESSES + 3, 10: lambda i: _TILE_ACCESSES + 2, 12: lambda i: 1},
        once=2,
    ),
)


# linear_scan: a thread has two numbers of a row. An iteration uses two batches of rows, each of at most 8
# whose loads fit into the registers of a batch. The template arguments are whether numbers are complex, and
# whether coefficients differ by row. The loops over whole groups come before those over partial ones.
def _scan_rows(registers: Share) -> Share:
    def rows(instance: Instance) -> float:
        number = 8
        while number > 1 and number * registers(instance) > defaults("linear_scan")["BATCH_REGISTERS"]:
            number //= 2
        return 2 * number

    return rows


def _floats(instance: Instance) -> int:
    return 4 if instance.sizes[0] else 2


_ROWS_FORWARD = _scan_rows(lambda i: _floats(i) * (i.element_size / 4 + i.sizes[1]))
_ROWS_BACKWARD = _scan_rows(lambda i: _floats(i) * (2 * i.element_size / 4 + i.sizes[1]))
_SCAN_SUMS = (Form(4, {3: _one_in(_ROWS_FORWARD)}),)
_SCAN_FORWARD = (Form(5, {4: _one_in(_ROWS_FORWARD)}),)
_SCAN_BACKWARD = (Form(7, {3: _one_in(_ROWS_BACKWARD)}), Form(4, {3: _one_in(_ROWS_BACKWARD)}))


# causal_conv1d: a thread has 4 channels of a row. An iteration uses two batches of rows.
def _conv_forward_rows(instance: Instance) -> float:
    return 2 * defaults("causal_conv1d")["ROWS"]


def _conv_backward_rows(instance: Instance) -> float:
    return _conv_forward_rows(instance) / (2 if instance.element_size == 4 else 1)


_CONV_FORWARD = (Form(9, {8: _one_in(_conv_forward_rows)}, {8: _accesses(_conv_forward_rows, lambda i: 2)}),)
_CONV_BACKWARD = (
    Form(11, {7: _one_in(_conv_backward_rows)}, {7: _accesses(_conv_backward_rows, lambda i: 3)}),
)


def _head(instance: Instance) -> str:
    return f"head {instance.size}"


def _states(instance: Instance) -> str:
    lanes, states, scan = instance.sizes
    return f"N {lanes * states}" + (", reversed" if scan == 2 else "")


def _coefficients(instance: Instance) -> str:
    kind, steps, *backward = instance.sizes
    name = f"{'complex' if kind else 'real'}, {'each step' if steps else 'constant'}"
    return name + ", reversed" * sum(backward)


def _kernel_size(instance: Instance) -> str:
    return f"K {instance.size}"


def _only(when: str) -> Callable[[Instance], str]:
    return lambda instance: when


def _rela(direction: str, forms: tuple[Form, ...], when: str = "always") -> Kernel:
    return Kernel("gated_rela", direction, CHUNK, _head, forms, when=_only(when))


def _narrow(
    direction: str, forms: tuple[Form, ...], causal: str = "causal", parts: Share = lambda i: 1.0
) -> Kernel:
    """Kernels whose second template argument is whether they are causal; `causal`: when these run."""

    def when(instance: Instance) -> str:
        return causal if instance.sizes[1] else "bidirectional"

    return Kernel("gated_rela", direction, CHUNK, _head, forms, parts, when)


def _scan(direction: str, forms: tuple[Form, ...], when: str = "always") -> Kernel:
    return Kernel("linear_scan", direction, ROW, _coefficients, forms, lambda i: 2.0, _only(when))


def _conv(direction: str, forms: tuple[Form, ...]) -> Kernel:
    return Kernel("causal_conv1d", direction, ROW, _kernel_size, forms, lambda i: 4.0)


KERNELS = {
    "narrow::rela_key_sums_kernel": Kernel(
        "gated_rela", "forward", CHUNK, _head, _NARROW_KEYS, _tiles, _only("bidirectional")
    ),
    "narrow::rela_forward_kernel": _narrow("forward", _NARROW_FORWARD, parts=_tiles),
    "narrow::rela_query_sums_kernel": _narrow("backward", _NARROW_QUERIES, "cut"),
    "narrow::rela_backward_kernel": _narrow("backward", _NARROW_BACKWARD),
    "rela_wide_key_sums_kernel": _rela("forward", _WIDE_KEYS, "bidirectional"),
    "rela_wide_forward_kernel": _rela("forward", _WIDE_FORWARD),
    "rela_wide_reverse_kernel": Kernel(
        "gated_rela",
        "backward",
        CHUNK,
        _head,
        _WIDE_BACKWARD + _WIDE_QUERIES,
        _gradient_parts,
        when=lambda i: "always" if i.sizes[1] else "bidirectional",
    ),
    "selective_scan_kernel": Kernel(
        "selective_scan",
        "forward",
        ROW,
        _states,
        _SELECTIVE_SCAN,
        lambda i: 1 / i.size,
        lambda i: "cut" if i.sizes[2] else "always",
    ),
    "selective_backward_kernel": Kernel(
        "selective_scan",
        "backward",
        ROW,
        lambda i: f"N {_all_states(i):.0f}",
        _SELECTIVE_BACKWARD,
        lambda i: i.sizes[1] / i.size,
    ),
    "scan_sum_segments_kernel": _scan("forward", _SCAN_SUMS, "cut"),
    "scan_forward_kernel": _scan("forward", _SCAN_FORWARD),
    "scan_backward_kernel": _scan("backward", _SCAN_BACKWARD),
    "conv_forward_kernel": _conv("forward", _CONV_FORWARD),
    "conv_backward_kernel": _conv("backward", _CONV_BACKWARD),
}
